"""Who holds a TCP port, and which is free."""

from __future__ import annotations

import errno
import ipaddress
import os
import pwd
import socket
from collections.abc import Collection
from pathlib import Path

from cortexd.errors import InvalidConfig, PortInUse
from cortexd.waiter.sockets import Listener, answering

_FIRST = 8000
_DEFAULT_EPHEMERAL = 32768  # the kernel's default for the first port that it hands out itself


def holder(address: str, port: int) -> str | None:
    """Who listens where a server on `address`:`port`, or at the path `address`, would: a sentence's subject, or None."""
    sockets = answering(address, port)
    return _describe(sockets[0]) if sockets else None


def _describe(sock: Listener) -> str:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.name == str(sock.pid) or any(
                str(fd.readlink()) == f"socket:[{sock.inode}]" for fd in (process / "fd").iterdir()
            ):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
        except OSError:
            continue  # another user's, or gone meanwhile
    try:
        user = pwd.getpwuid(sock.uid).pw_name
    except KeyError:
        user = str(sock.uid)
    return f"a process of user {user}"


def free_port(address: str, taken: Collection[int]) -> int:
    """A free port below the kernel's ephemeral range, which could lose it to any outgoing connection. Raises PortInUse."""
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        low = _DEFAULT_EPHEMERAL
    for port in range(_FIRST, max(low, _FIRST + 1)):
        if port not in taken and _can_bind(address, port):
            return port
    raise PortInUse(f"port=auto: no port from {_FIRST} to {low - 1} is free; give one with --port")


def _can_bind(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
        except OSError as e:
            if e.errno == errno.EADDRNOTAVAIL:
                raise InvalidConfig(f"host={address!r}: is no address of this machine; use one that it has") from None
            return False
        return True


def overlap(host: str, other: str) -> bool:
    """Whether servers on these two addresses would want the same socket."""
    if host.startswith("/") or other.startswith("/"):
        return host == other
    first, second = (ipaddress.ip_address("127.0.0.1" if h == "localhost" else h) for h in (host, other))
    return first == second or first.is_unspecified or second.is_unspecified


def machine_memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
