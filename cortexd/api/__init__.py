"""The D-Bus face of cortexd: objects that delegate to the manager."""
