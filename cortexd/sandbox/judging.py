"""Requested against effective: what was asked for, what could be done in the sandbox and outside of it → a table. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from cortexd.model import SETTINGS, ModelSpec
from cortexd.units.render import has_namespaces

Results = Mapping[str, int]
"""How each attempt ended, by its name in `attempts.ATTEMPTS`: 0, or an errno."""

MOOT = "this user may not anyway"


class Effect(StrEnum):
    """What a directive does on this machine."""

    IN_FORCE = "in force"
    COVERED = "covered"
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
    """What looks brought. `failure`: why there was none."""

    sandbox: Results
    control: Results
    """Without any sandbox."""
    failure: str = ""
    apart: Mapping[str, Results] = field(default_factory=dict)
    """In the sandbox without one directive, by its name; empty where systemd cannot set that up, nor then the attempts."""
    alone: Mapping[str, Results] = field(default_factory=dict)
    """In a sandbox of one directive, by its name; the same. Tried where one of them is covered."""


WORDS: Mapping[str, str] = {
    "user-namespace": "be in the machine's user namespace",
    "gain-privileges": "gain privileges by set-user-ID programs",
    "write-system": "write to the system's folders",
    "write-elsewhere": "write to a folder of yours outside of your home",
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
    "lift-limits": "lift its limits in namespaces of its own",
    "user-bus": "reach your bus",
    "user-manager": "reach your service manager",
    "system-bus": "reach the system's bus",
    "see-run": "see the sockets in /run",
    "see-terminals": "open your terminals",
    "see-console": "open the machine's first console",
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
    "open-files": "make files with the rights that the mask takes away",
}
"""What each attempt tries, as the end of a sentence."""

_ATTEMPTS: Mapping[str, tuple[str, ...]] = {
    "NoNewPrivileges": ("gain-privileges",),
    "ProtectSystem": ("write-system", "write-elsewhere"),
    "ProtectHome": ("write-home",),
    "PrivateTmp": ("see-tmp", "see-var-tmp", "see-shared-memory"),
    "PrivateDevices": ("see-devices",),
    "RestrictRealtime": ("realtime",),
    "RestrictSUIDSGID": ("setuid-file",),
    "ProtectKernelTunables": ("tunables",),
    "ProtectKernelModules": ("unload-module", "see-modules"),
    "ProtectControlGroups": ("control-group", "lift-limits"),
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
OPTIONAL = tuple(_ATTEMPTS)
"""The directives without which a sandbox is still one."""
_FENCES: Mapping[str, tuple[str, ...]] = {
    "PrivateUsers": ("user-namespace",),
    "TemporaryFileSystem=/run": ("user-bus", "user-manager", "system-bus", "see-run"),
    "InaccessiblePaths=/dev/pts": ("see-terminals", "see-console"),
    "InaccessiblePaths=~/.cortex": ("see-data", "see-secrets", "see-units"),
}
"""The same for what no setting says, and every sandbox of folders has."""


LeftOut = Mapping[str, str]
"""Why a directive is not in a unit that should have it, by the directive's name."""


def table(spec: ModelSpec, proof: Proof, left_out: LeftOut = MappingProxyType({})) -> list[Row]:
    """One row for each directive."""
    return [*_rows(spec, proof, left_out)]


def _rows(spec: ModelSpec, proof: Proof, left_out: LeftOut) -> Iterator[Row]:
    fenced = has_namespaces(spec)
    for directive, attempts in _FENCES.items():
        yield _judge(directive, "yes" if fenced else "no", attempts, proof, left_out)
    for name, attempts in _ATTEMPTS.items():
        setting = SETTINGS.get(name)
        if setting is None:
            continue
        requested = setting.kind.text(setting.of(spec))
        if name == "ProtectHome" and requested in ("tmpfs", "true"):
            attempts = (*attempts, "see-home")
        elif name == "ProtectSystem" and requested != "strict":
            attempts = ("write-system",)
        row = _judge(name, requested, attempts, proof, left_out)
        if "write-elsewhere" in attempts and proof.control.get("write-elsewhere") and row.why:
            row = replace(row, why=f"{row.why}; no folder of yours outside of home and /tmp was found to try it in")
        yield row


def _judge(directive: str, requested: str, attempts: tuple[str, ...], proof: Proof, left_out: LeftOut) -> Row:
    """In force only where it fails inside, and succeeds outside of the sandbox and in one that lacks this directive alone."""
    if requested in ("no", "false", "0022"):
        return Row(directive, requested, Effect.OFF)
    if directive in left_out:
        return Row(directive, requested, Effect.NOT_IN_FORCE, f"it is left out: {left_out[directive]}")
    if proof.failure:
        return Row(directive, requested, Effect.UNKNOWN, proof.failure)
    if any(name not in proof.sandbox or name not in proof.control for name in attempts):
        return Row(directive, requested, Effect.UNKNOWN, "it was not tried")
    possible = [WORDS[name] for name in attempts if proof.sandbox[name] == 0]
    if possible:
        return Row(directive, requested, Effect.NOT_IN_FORCE, f"the server could {', and '.join(possible)}")
    prevented = [name for name in attempts if proof.control[name] == 0]
    if not prevented:
        return Row(directive, requested, Effect.MOOT, MOOT)
    apart = proof.apart.get(directive)
    alone = [name for name in prevented if not apart or apart.get(name) == 0]
    said = f"the server cannot {', nor '.join(WORDS[name] for name in alone or prevented)}"
    if not alone:
        others = [n for n, found in proof.alone.items() if n != directive and any(found.get(a) for a in prevented)]
        return Row(directive, requested, Effect.COVERED, f"{said}; without it {_names(others)} that")
    if apart is not None and not apart:
        said += "; without it systemd cannot set up the rest"
    return Row(directive, requested, Effect.IN_FORCE, said)


def _names(covering: Sequence[str]) -> str:
    """Who prevents the same."""
    if len(covering) > 2:
        return f"{covering[0]}, {covering[1]} and {len(covering) - 2} more prevent"
    return (
        f"{' and '.join(covering)} prevent" + "s" * (len(covering) == 1) if covering else "the others together prevent"
    )


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
