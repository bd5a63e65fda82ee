"""What every verb works with, and the one way from names on the command line to calls on models and a report."""

from __future__ import annotations

import argparse
from functools import cached_property

from cortexctl.bus import CALL_TIMEOUT, DBUS, PROPERTIES, Bus, Call
from cortexctl.errors import NO_SUCH_MODEL, OK, CtlError, DaemonError
from cortexctl.human import about
from cortexctl.output import Output
from cortexd.names import BUS_NAME, MANAGER_INTERFACE, MODEL_INTERFACE, MODEL_PREFIX, ROOT_PATH, model_path

TYPE_CHECKING = False  # typing takes as long to import as half of our own modules
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    Info = dict[str, Any]
    """A model as ListModels describes it; the keys are the properties of org.cortexlinux.Cortex1.Model."""

MODEL_CHANGES = (
    f"sender='{BUS_NAME}',interface='{PROPERTIES}',member='PropertiesChanged',"
    f"path_namespace='{MODEL_PREFIX.rstrip('/')}',arg0='{MODEL_INTERFACE}'"
)
"""Match rule of every model's changes."""
OWNER_CHANGES = f"sender='{DBUS}',interface='{DBUS}',member='NameOwnerChanged',arg0='{BUS_NAME}'"
"""Match rule of the daemon's coming and going."""


def manager_call(member: str, signature: str = "", *body: Any) -> Call:
    """A call to the daemon itself."""
    return Call(ROOT_PATH, MANAGER_INTERFACE, member, signature, body)


def model_call(name: str, member: str, signature: str = "a{sv}", *body: Any) -> Call:
    """A call to one model; without arguments, the one with empty options."""
    return Call(model_path(name), MODEL_INTERFACE, member, signature, body or (({},) if signature else ()))


def is_pattern(name: str) -> bool:
    """Whether it is a shell pattern."""
    return any(c in name for c in "*?[")


class Context:
    """One invocation: its options, its output, its connection, and the first failure."""

    def __init__(self, args: argparse.Namespace, out: Output) -> None:
        self.args = args
        self.out = out
        self.exit_code = OK

    @cached_property
    def bus(self) -> Bus:
        """The connection, made when it is first needed; calls start the daemon."""
        return Bus()

    def fail(self, error: CtlError, name: str = "") -> None:
        """Report a failure and go on; the first one decides the exit code. Raises a DaemonError."""
        if isinstance(error, DaemonError):
            raise error
        if name:
            error = CtlError(error.name, about(name, error.message), error.exit_code)
        self.exit_code = self.exit_code or error.exit_code
        self.out.error(error)
        if self.out.json and name:
            self.out.result({"Name": name, "error": error.name, "message": error.message})

    def models(self, patterns: Sequence[str], **options: bool | Sequence[str]) -> list[Info]:
        """The models that the patterns name, each once; a name that is unknown, or patterns that match nothing, are reported."""
        found, unknown = self.lookup(patterns, **options)
        for name, error in unknown.items():
            self.fail(error, name)
        if patterns and not found and not unknown:
            self.out.note(f"no model matches {' or '.join(patterns)}")
            self.exit_code = self.exit_code or NO_SUCH_MODEL
        return found

    def lookup(
        self, patterns: Sequence[str], **options: bool | Sequence[str]
    ) -> tuple[list[Info], dict[str, CtlError]]:
        """Models that match, and the error of each name that is unknown. options: settings, usage, limits, properties (see
        ListModels)."""
        variants = {
            name: ("b", True) if wanted is True else ("as", wanted) for name, wanted in options.items() if wanted
        }

        def listing(wanted: Sequence[str]) -> Call:
            return manager_call("ListModels", "asa{sv}", list(wanted), variants)

        try:
            (found,) = self.bus.call(listing(patterns))
            return found, {}
        except CtlError as e:
            if e.exit_code != NO_SUCH_MODEL:
                raise
            if len(patterns) == 1:
                return [], {patterns[0]: e}
        models: dict[str, Info] = {}
        unknown: dict[str, CtlError] = {}
        replies = dict(self.bus.gather({pattern: listing([pattern]) for pattern in patterns}))
        for pattern in patterns:
            reply = replies[pattern]
            if not isinstance(reply, CtlError):
                models.update((info["Name"], info) for info in reply[0])
            elif reply.exit_code == NO_SUCH_MODEL:
                unknown[pattern] = reply
            else:
                raise reply
        return list(models.values()), unknown

    def names(self, patterns: Sequence[str]) -> list[str]:
        """The names alone, each once; cheaper where all are plain, since no unit has to be looked at."""
        if not patterns or any(map(is_pattern, patterns)):
            return [info["Name"] for info in self.models(patterns, properties=["Name"])]
        return [name for name, _ in self.each({name: manager_call("GetModel", "s", name) for name in patterns})]

    def each(self, calls: Mapping[str, Call], seconds: float = CALL_TIMEOUT) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Call all at once; replies in the order of `calls`. A failure is reported, and the others go on."""
        replies = dict(self.bus.gather(calls, seconds))
        for name in calls:
            reply = replies[name]
            if isinstance(reply, CtlError):
                self.fail(reply, name)
            else:
                yield name, reply

    def on_models(self, patterns: Sequence[str], call: Callable[[str], Call]) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Names, one call on each, the replies of those that succeeded."""
        return self.each({name: call(name) for name in self.names(patterns)})

    def warn(self, name: str, warnings: Iterable[str]) -> None:
        """What the daemon remarked about a model."""
        for warning in warnings:
            self.out.warn(about(name, warning))
