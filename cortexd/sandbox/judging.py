"""Requested against effective: what was asked for, what could be done in the sandbox and outside of it → a table. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from cortexd.model import SETTINGS, ModelSpec
from cortexd.units.render import has_namespaces

Results = Mapping[str, int]
"""How each attempt ended, by its name in `attempts.ATTEMPTS`: 0, or an errno."""

MOOT = "this user may not anyway"


class Effect(StrEnum):
    """What a directive does on this machine."""

    IN_FORCE = "in force"
    MOOT = "moot"
    NOT_IN_FORCE = "not in force"
    UNKNOWN = "unknown"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Row:
    """One directive of a model: what was asked for, what it does, and why (empty: nothing to say)."""

    directive: str
    requested: str
    effect: Effect
    why: str = ""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a look brought. `failure`: why there was none."""

    sandbox: Results
    control: Results
    failure: str = ""


WORDS: Mapping[str, str] = {
    "user-namespace": "act as the user that it is for the whole machine",
    "gain-privileges": "gain privileges by set-user-ID programs",
    "write-system": "write to the system's folders",
    "write-home": "write to your home",
    "see-home": "see your home",
    "see-tmp": "see the machine's /tmp",
    "see-var-tmp": "see the machine's /var/tmp",
    "see-shared-memory": "see the machine's /dev/shm",
    "see-devices": "see the machine's devices",
    "realtime": "have realtime scheduling",
    "setuid-file": "make a set-user-ID file",
    "tunables": "write to /proc/sys and /sys",
    "unload-module": "load and unload kernel modules",
    "see-modules": "read the kernel's modules",
    "control-group": "write to its control group",
    "user-bus": "reach your bus",
    "user-manager": "reach your service manager, and so start anything outside of its sandbox",
    "see-data": "read ~/.cortex",
    "see-secrets": "read other models' secrets",
    "see-units": "read other models' units",
    "namespaces": "make namespaces",
    "personality": "change its execution domain",
    "write-and-execute": "have memory that it can write and execute",
    "other-family": "open sockets of other families",
    "trace": "make system calls that no service needs (ptrace)",
    "kernel-log": "reach the kernel's log",
    "clock": "reach the calls that set the clock",
    "host-name": "set the machine's name",
    "open-files": "make files that others can read",
}
"""What each attempt tries, as the end of a sentence."""

_ATTEMPTS: Mapping[str, tuple[str, ...]] = {
    "NoNewPrivileges": ("gain-privileges",),
    "ProtectSystem": ("write-system",),
    "ProtectHome": ("write-home",),
    "PrivateTmp": ("see-tmp", "see-var-tmp", "see-shared-memory"),
    "PrivateDevices": ("see-devices",),
    "RestrictRealtime": ("realtime",),
    "RestrictSUIDSGID": ("setuid-file",),
    "ProtectKernelTunables": ("tunables",),
    "ProtectKernelModules": ("unload-module", "see-modules"),
    "ProtectControlGroups": ("control-group",),
    "RestrictNamespaces": ("namespaces",),
    "RestrictAddressFamilies": ("other-family",),
    "SystemCallFilter": ("trace",),
    "LockPersonality": ("personality",),
    "MemoryDenyWriteExecute": ("write-and-execute",),
    "ProtectKernelLogs": ("kernel-log",),
    "ProtectClock": ("clock",),
    "ProtectHostname": ("host-name",),
    "UMask": ("open-files",),
}
"""What a setting should prevent."""
_FENCES: Mapping[str, tuple[str, ...]] = {
    "PrivateUsers": ("user-namespace",),
    "TemporaryFileSystem=%t": ("user-bus", "user-manager"),
    "InaccessiblePaths=~/.cortex": ("see-data", "see-secrets", "see-units"),
}
"""The same for what no setting says, and every sandbox of folders has."""


def table(spec: ModelSpec, proof: Proof, left_out: str = "") -> list[Row]:
    """One row for each directive. `left_out`: why those that need namespaces are not in the unit; empty where they are."""
    return [*_rows(spec, proof, left_out)]


def _rows(spec: ModelSpec, proof: Proof, left_out: str) -> Iterator[Row]:
    fenced = has_namespaces(spec)
    for directive, attempts in _FENCES.items():
        yield _judge(directive, "yes" if fenced else "no", attempts, proof, left_out if fenced else "")
    for name, attempts in _ATTEMPTS.items():
        setting = SETTINGS.get(name)
        if setting is None:
            continue
        requested = setting.kind.text(setting.of(spec))
        if name == "ProtectHome" and requested in ("tmpfs", "true"):
            attempts = (*attempts, "see-home")
        elif name == "ProtectSystem" and requested == "strict":
            attempts = (*attempts, "write-home")  # it leaves nothing that can be written
        yield _judge(name, requested, attempts, proof, left_out)


def _judge(directive: str, requested: str, attempts: tuple[str, ...], proof: Proof, left_out: str) -> Row:
    """In force only where outside of the sandbox it succeeds and inside it fails."""
    if requested in ("no", "false", "0022"):
        return Row(directive, requested, Effect.OFF)
    if left_out and directive in NEED_NAMESPACES:
        return Row(directive, requested, Effect.NOT_IN_FORCE, f"it is left out: {left_out}")
    if proof.failure:
        return Row(directive, requested, Effect.UNKNOWN, proof.failure)
    if any(name not in proof.sandbox or name not in proof.control for name in attempts):
        return Row(directive, requested, Effect.UNKNOWN, "it was not tried")
    possible = [WORDS[name] for name in attempts if proof.sandbox[name] == 0]
    if possible:
        return Row(directive, requested, Effect.NOT_IN_FORCE, f"the server could {', and '.join(possible)}")
    prevented = [WORDS[name] for name in attempts if proof.control[name] == 0]
    if not prevented:
        return Row(directive, requested, Effect.MOOT, MOOT)
    return Row(directive, requested, Effect.IN_FORCE, f"the server cannot {', nor '.join(prevented)}")


NEED_NAMESPACES = frozenset(
    [
        *_FENCES,
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectControlGroups",
        "ProtectKernelLogs",
        "ProtectClock",
        "ProtectHostname",
    ]
)
"""What systemd can do for a user's service in a user namespace alone (measured on 252)."""


def not_in_force(rows: list[Row]) -> list[str]:
    """The directives that were asked for and do nothing."""
    return [row.directive for row in rows if row.effect is Effect.NOT_IN_FORCE]
