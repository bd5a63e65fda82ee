"""Unit files: text from a launch plan (pure), and its careful writing."""
