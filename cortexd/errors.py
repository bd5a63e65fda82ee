"""Every error that a caller may meet, with its name on the bus.

An error is raised once, where it is understood, with a sentence that names the field or object, its value and
the remedy. `api/` turns the class into `org.cortexlinux.Cortex1.Error.NAME`; the client turns that into words.
"""

from __future__ import annotations

ERROR_PREFIX = "org.cortexlinux.Cortex1.Error."


class CortexError(Exception):
    """Base of all named errors; the class name is the last part of the D-Bus error name."""

    @property
    def dbus_name(self) -> str:
        """The full D-Bus error name."""
        return ERROR_PREFIX + type(self).__name__


class NoSuchModel(CortexError):
    """No model of that name is registered."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no model {name!r} is registered; 'cortexctl list' shows those that are")


class ModelExists(CortexError):
    """A model of that name is registered already."""


class InvalidName(CortexError):
    """The name is not one that a model may have."""


class InvalidConfig(CortexError):
    """A setting has a value that it cannot have; the message names the setting, the value and the remedy."""


class NoSuchSecret(CortexError):
    """The model has no secret of that name."""


class InvalidArgs(CortexError):
    """An option of a method is unknown or of another type; the bus's own error name."""

    @property
    def dbus_name(self) -> str:
        """See CortexError."""
        return "org.freedesktop.DBus.Error.InvalidArgs"


class UnitConflict(CortexError):
    """A unit file of the model's name exists that cortexd did not write, or that was edited by hand."""


class NoSuchJob(CortexError):
    """The job is unknown, or ended more than a minute ago."""


class JobFailed(CortexError):
    """The job ended without reaching what was asked for."""


class JobCanceled(CortexError):
    """The job was cancelled, or superseded by another one."""


class JobTimeout(CortexError):
    """The job did not end within its deadline."""


class UnitFailed(CortexError):
    """systemd refused the unit."""


class Busy(CortexError):
    """Another operation forbids this one now, or a bound was reached."""


class PortInUse(CortexError):
    """The model's port is held by another model or process, which the message names."""


class SystemdUnavailable(CortexError):
    """The user's systemd manager does not answer."""


class StoreFailed(CortexError):
    """The database could not be read or written."""


class ShuttingDown(CortexError):
    """The daemon is ending; the call had no effect that is not recorded."""
