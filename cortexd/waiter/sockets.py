"""Who listens at an address, and in which control group: what the kernel tells without privileges, in a sandbox, too."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. `cgroup` is the inode number of the control group that opened it, 0 where not known."""

    address: str
    """Of a Unix socket its path; then there is no port and no inode."""
    port: int
    uid: int
    inode: int
    cgroup: int = 0
    pid: int = 0
    """The process that made a Unix socket listen; 0 of others."""


def answering(address: str, port: int) -> list[Listener]:
    """All who answer at an address: one of IPv4 or IPv6 and a port, or the path of a Unix socket."""
    if address.startswith("/"):
        return _at_path(address)
    return answers_to(address, listeners(port))


def _at_path(path: str) -> list[Listener]:
    """Who listens at the path of a Unix socket (SO_PEERCRED, unix(7)): that is asked by connecting."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(path)
            pid, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:
            return []
    group = group_of(pid) if pid > 0 else None
    return [Listener(path, 0, uid, 0, group.stat().st_ino if group else 0, pid)]


def listeners(port: int) -> list[Listener]:
    """Every TCP socket that listens on `port`, from the kernel's sock_diag(7), else from /proc/net/tcp."""
    found: list[Listener] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            found += [sock for sock in _diag(family, port) if sock.port == port]
        except OSError:
            found += [sock for sock in _proc_net(family) if sock.port == port]
    return found


def answers_to(probe: str, sockets: list[Listener]) -> list[Listener]:
    """Those of `sockets` that a connection to the address `probe` can reach."""
    wanted = ipaddress.ip_address(probe)
    reached = []
    for sock in sockets:
        address = ipaddress.ip_address(sock.address)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        # A wildcard of IPv6 takes IPv4 connections, too, unless the server said otherwise.
        if address == wanted or (
            address.is_unspecified and (address.version == wanted.version or address.version == 6)
        ):
            reached.append(sock)
    return reached


def _diag(family: int, wanted: int) -> Iterator[Listener]:
    """LISTEN sockets on a port by netlink (linux/inet_diag.h). Unprivileged, and works in a sandbox that hides /proc/PID/fd."""
    sock_diag_by_family, dump, listen, netlink_sock_diag, done, error, attr_cgroup = 20, 0x301, 10, 4, 3, 2, 21
    request = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, 1 << listen) + bytes(48)
    # A filter, or every probe would read about the sockets of all models: at least and at most this port, else rejected by
    # a jump beyond the end. An operation is its code, the way on if it holds, the way on if not, and its operand in a second.
    at_least, at_most, bytecode = 2, 3, 1
    request += struct.pack("=HH", 4 + 16, bytecode)
    request += struct.pack("=BBHBBHBBHBBH", at_least, 8, 20, 0, 0, wanted, at_most, 8, 12, 0, 0, wanted)
    header = struct.pack("=IHHII", 16 + len(request), sock_diag_by_family, dump, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink_sock_diag) as netlink:
        netlink.settimeout(2)
        netlink.send(header + request)
        while True:
            data = netlink.recv(1 << 17)
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind == done:
                    return
                if kind == error:
                    raise OSError("sock_diag is refused")
                body = data[16:length]
                (port,) = struct.unpack_from(">H", body, 4)
                size = 4 if family == socket.AF_INET else 16
                uid, inode = struct.unpack_from("=II", body, 64)
                cgroup, offset = 0, 72
                while offset + 4 <= len(body):
                    attr_length, attr = struct.unpack_from("=HH", body, offset)
                    if attr_length < 4:
                        break
                    if attr == attr_cgroup:
                        (cgroup,) = struct.unpack_from("=Q", body, offset + 4)
                    offset += (attr_length + 3) & ~3
                yield Listener(socket.inet_ntop(family, body[8 : 8 + size]), port, uid, inode, cgroup)
                data = data[(length + 3) & ~3 :]


def _proc_net(family: int) -> Iterator[Listener]:
    """LISTEN sockets from /proc/net (proc(5)); addresses are words in the machine's byte order."""
    table = Path("/proc/net/tcp" if family == socket.AF_INET else "/proc/net/tcp6")
    try:
        rows = table.read_text().splitlines()[1:]
    except OSError:
        return
    for row in rows:
        columns = row.split()
        if columns[3] == "0A":
            address, port = columns[1].split(":")
            words = struct.pack(
                f"={len(address) // 8}I", *(int(address[i : i + 8], 16) for i in range(0, len(address), 8))
            )
            yield Listener(socket.inet_ntop(family, words), int(port, 16), int(columns[7]), int(columns[9]))


def own_group() -> Path | None:
    """The folder of this process's control group, None where it cannot be seen."""
    return group_of(os.getpid())


def group_of(pid: int) -> Path | None:
    """The folder of a process's control group, None where it cannot be seen."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return None
    path = next((line[3:] for line in groups if line.startswith("0::")), "")
    # There may be several mounts, some of them hidden by later ones, or of a part of the tree that it is not in.
    for fields in reversed(mounts):
        if fields[fields.index("-") + 1] == "cgroup2":
            folder = Path(fields[4], path.removeprefix(fields[3].rstrip("/")).lstrip("/"))
            try:
                if str(pid) in (folder / "cgroup.procs").read_text().split():
                    return folder
            except OSError:
                continue
    return None
