"""The version of the daemon, the client and the unit generator: one number, since they are shipped together."""

VERSION = "0.1.0"
