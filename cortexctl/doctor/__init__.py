"""What `cortexctl doctor` looks at and what it says of it: evidence, collected within bounds, and pure rules over it."""
