"""What keeps a model from running: before a start (preflight), and after a failure (why)."""
