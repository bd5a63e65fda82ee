"""What a model's drop-ins say of its sandbox, and nothing else that they say: what is taken over by a unit that tries it.

A drop-in may well name other units (Conflicts=, OnFailure=), files and folders that systemd makes, empties or removes
(StandardOutput=, RuntimeDirectory=) or programs: a look at a sandbox must do nothing of that.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable

_MAX_FILE = 1 << 20  # bytes; systemd reads no line that is longer

_DIRECTIVES = frozenset(
    """
    PrivateUsers PrivateTmp PrivateDevices PrivateMounts PrivateIPC PrivateNetwork PrivatePIDs PrivateBPF ProtectSystem
    ProtectHome ProtectKernelTunables ProtectKernelModules ProtectKernelLogs ProtectControlGroups ProtectClock
    ProtectHostname ProtectProc ProcSubset NoNewPrivileges RestrictRealtime RestrictSUIDSGID RestrictNamespaces
    RestrictAddressFamilies RestrictFileSystems RestrictNetworkInterfaces SystemCallFilter SystemCallArchitectures
    SystemCallErrorNumber LockPersonality MemoryDenyWriteExecute UMask SecureBits CapabilityBoundingSet AmbientCapabilities
    ReadWritePaths ReadOnlyPaths InaccessiblePaths ExecPaths NoExecPaths BindPaths BindReadOnlyPaths TemporaryFileSystem
    RootDirectory MountAPIVFS DevicePolicy DeviceAllow IPAddressAllow IPAddressDeny KeyringMode LimitRTPRIO
    """.split()  # noqa: SIM905
)
"""Of [Service]: systemd.exec(5), systemd.resource-control(5)."""


def lines_of(paths: Iterable[str]) -> list[str]:
    """The lines of these files that make a sandbox, in their order; blocking. Raises OSError where one is not a file of a
    bearable size."""
    return [line for path in paths for line in sandbox_lines(_read(path))]


def sandbox_lines(text: str) -> list[str]:
    """Those of a unit file's text (systemd.syntax(7)), each as one line. Pure."""
    blanks, section, begun = " \t", "", ""
    found = []
    # systemd's read_line() ends a line at each of these.
    for raw in [*re.split(r"[\n\r\0]", text.removeprefix("\ufeff")), ""]:
        line = raw.strip(blanks)
        if line.startswith(("#", ";")):  # also in the middle of a line that goes on
            continue
        if (len(raw) - len(raw.rstrip("\\"))) % 2:
            begun += raw[:-1] + " "
            continue
        line, begun = (begun + raw).strip(blanks), ""
        if line.startswith("["):
            section = line
        name, equals, value = line.partition("=")
        if section == "[Service]" and equals and name.rstrip(blanks) in _DIRECTIVES and _is_text(value):
            found.append(f"{name.rstrip(blanks)}={value.strip(blanks)}")
    return found


def _is_text(value: str) -> bool:
    """systemd ignores a line that is no UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no regular file")
        parts, room = [], _MAX_FILE + 1
        while room > 0 and (part := os.read(descriptor, room)):
            parts.append(part)
            room -= len(part)
    finally:
        os.close(descriptor)
    if room <= 0:
        raise OSError(f"{path} is larger than {_MAX_FILE} bytes")
    return b"".join(parts).decode("utf-8", "surrogateescape")
