"""What every sandbox of folders hides of the machine, whatever the settings; and which lines of a unit belong to which directive.

A Unix socket is a way out of a sandbox: who listens at it acts outside, and a file system that is read-only does not stop
connect(2). So of /run the server sees what is named here and nothing else: neither the system's bus nor those of containers
(docker.sock makes root of its group), virtual machines, terminals. Measured on 252 and 257.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

RUN = Path("/run")

_NAMES = ("systemd/resolve", "systemd/userdb", "nscd", "nslcd", "samba/winbindd", "avahi-daemon")
"""By which the C library finds addresses and users (nss(5)); without a name of its user PyTorch does not start."""
_RESOLVERS = ("resolvconf", "NetworkManager", "connman", "netconfig")
"""Where /etc/resolv.conf leads; folders, since the file in them is replaced by another one."""
_DEVICES = ("udev", "nvidia-persistenced", "nvidia-fabricmanager", "nvidia-imex")
_PROGRAMS = ("current-system", "booted-system", "opengl-driver", "opengl-driver-32")
"""NixOS: links to where programs and the GPU's driver lie."""
_DISKS = ("media",)
"""Those that are plugged in: models may lie there."""
_LOG = ("systemd/journal/dev-log", "systemd/journal/socket")
"""syslog(3), and sd_journal_send(3), by which systemd itself says, from inside the sandbox, why the program cannot be run. Not
the socket for streams, whose lines can bear another unit's name."""

SHOWN = tuple(RUN / name for name in (*_NAMES, *_RESOLVERS, *_DEVICES, *_PROGRAMS, *_DISKS, *_LOG))
"""What is shown of /run, where it is there."""

_CONTAINERS = ("/var/lib/lxd", "/var/lib/incus", "/var/snap/lxd")
"""Outside of /run, who may connect is root of the machine as well."""
_CONSOLES = (*(f"/dev/tty{number}" for number in range(1, 7)), "/dev/ttyS0", "/dev/ttyAMA0", "/dev/hvc0")
"""Of a login there is the owner who logged in. Those on which logind starts one; each takes a start some two milliseconds."""


def machine() -> Iterator[str]:
    """The lines that hide the machine's sockets, and the user's terminals, whose other ends are files of the user's, too: who
    opens one reads what is typed. No server that cortexd knows needs a pseudo-terminal."""
    yield f"TemporaryFileSystem={RUN}:ro"
    yield f"BindReadOnlyPaths={' '.join(f'-{path}' for path in SHOWN)}"
    yield f"InaccessiblePaths={' '.join(f'-{path}' for path in _CONTAINERS)}"
    yield f"InaccessiblePaths={' '.join(f'-{path}' for path in ('/dev/pts', *_CONSOLES))}"


_LINES = {
    "ProtectControlGroups": ("ProtectControlGroups=", "RestrictNamespaces=~"),
    "PrivateTmp": ("PrivateTmp=", "TemporaryFileSystem=/dev/shm"),
    "SystemCallFilter": ("SystemCallFilter=", "SystemCallErrorNumber="),
    "TemporaryFileSystem=/run": (
        *("TemporaryFileSystem=/run:", "BindReadOnlyPaths=-/run/", "InaccessiblePaths=-/var/"),
        *("TemporaryFileSystem=%t", "BindReadOnlyPaths=%t", "BindReadOnlyPaths=-%t"),
    ),
    "InaccessiblePaths=/dev/pts": ("InaccessiblePaths=-/dev/",),
    "InaccessiblePaths=~/.cortex": ('InaccessiblePaths=-"',),
}
"""How the lines of a directive begin, where its name alone does not say it."""


def without(lines: Sequence[str], directive: str) -> list[str]:
    """A sandbox's lines but those of one directive."""
    own = {*only(lines, directive)}
    return [line for line in lines if line not in own]


def only(lines: Sequence[str], directive: str) -> list[str]:
    """Those of one directive."""
    return [line for line in lines if line.startswith(_LINES.get(directive, (f"{directive}=",)))]
