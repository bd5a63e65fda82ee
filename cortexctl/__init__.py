"""cortexctl, also called cortex-model: the command line of cortexd, a thin synchronous D-Bus client."""
