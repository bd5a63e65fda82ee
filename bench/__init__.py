"""`make bench`: cortexd beside what a person would use instead, measured in one run on one machine."""
