"""Waits inside a model's unit (ExecStartPost=) until the server answers: its exit ends the start job.

Standard library only, run as a script with an empty environment, so that it works while cortexd is dead and whatever
the model's environment says. Ends with status 0 when the server is ready or the unit is being stopped, and with
status 1 and the reason on standard error when the main process is gone, a stranger answers on the port, or the time is up.
systemd itself would not notice the main process's death before this program ends (measured on 252 and 257).
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

FAST_POLL, FAST_FOR, POLL = 0.05, 2.0, 0.1
"""Seconds between probes at first, for how long, and after that."""

PROBE_TIMEOUT = 5.0
"""Seconds that one probe may take in all."""

_MAX_STATUS_LINE = 4096


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket. `cgroup` is the inode number of the control group that opened it, 0 where not known."""

    address: str
    port: int
    uid: int
    inode: int
    cgroup: int = 0


def listeners(port: int) -> list[Listener]:
    """Every socket that listens on `port`, from the kernel's sock_diag(7), else from /proc/net/tcp."""
    found: list[Listener] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            found += [sock for sock in _diag(family) if sock.port == port]
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


def _diag(family: int) -> Iterator[Listener]:
    """LISTEN sockets by netlink (linux/inet_diag.h). Unprivileged, and works in a sandbox that hides /proc/PID/fd."""
    sock_diag_by_family, dump, listen, netlink_sock_diag, done, error, attr_cgroup = 20, 0x301, 10, 4, 3, 2, 21
    request = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, 1 << listen) + bytes(48)
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


def own_cgroup() -> int:
    """The inode number of this process's control group, 0 where it cannot be told."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return 0
    path = next((line[3:] for line in groups if line.startswith("0::")), "")
    # There may be several mounts, some of them hidden by later ones, or of a part of the tree that we are not in.
    for fields in reversed(mounts):
        if fields[fields.index("-") + 1] == "cgroup2":
            folder = Path(fields[4], path.removeprefix(fields[3].rstrip("/")).lstrip("/"))
            try:
                if str(os.getpid()) in (folder / "cgroup.procs").read_text().split():
                    return folder.stat().st_ino
            except OSError:
                continue
    return 0


def http_status(address: str, port: int, host: str, path: str, timeout: float) -> int:
    """The status code of one GET, reading no more than its first line. Raises OSError (TimeoutError included)."""
    deadline = time.monotonic() + timeout
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(timeout)
        sock.connect((address, port))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        line = b""
        while b"\n" not in line and len(line) < _MAX_STATUS_LINE:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            sock.settimeout(left)
            chunk = sock.recv(_MAX_STATUS_LINE)
            if not chunk:
                break
            line += chunk
    words = line.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not re.fullmatch(rb"\d{3}", words[1]):
        raise OSError("the answer is no HTTP")
    return int(words[1])


class Waiter:
    """One wait. `now` and `pause` come in, so that a test takes no time."""

    def __init__(
        self,
        *,
        address: str,
        port: int,
        host: str,
        path: str,
        timeout: float,
        now: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = lambda text: None,
        find: Callable[[int], list[Listener]] = listeners,
        cgroup: int = 0,
    ) -> None:
        self.address, self.port, self.host, self.path, self.timeout = address, port, host, path, timeout
        self.now, self.say, self.find, self.cgroup = now, say, find, cgroup
        self.last = ""

    def stranger(self) -> str:
        """Who else listens where the server should, or empty. Where control groups cannot be told, nobody."""
        if not self.cgroup:
            return ""
        for sock in answers_to(self.address, self.find(self.port)):
            if sock.cgroup and sock.cgroup != self.cgroup:
                return f"port {self.port} is held by a process outside this unit (user {sock.uid}, socket {sock.inode})"
        return ""

    def probe(self) -> bool:
        """Ask once; True if ready. What it said is kept in `last`, and told when it changes."""
        try:
            status = http_status(self.address, self.port, self.host, self.path, PROBE_TIMEOUT)
            seen = f"{self.path} answers {status}"
            ready = 200 <= status < 300
        except OSError as e:
            seen, ready = f"{self.path}: {e.strerror or e}", False
        if seen != self.last:
            self.last = seen
            self.say("Ready" if ready else f"Waiting for the server: {seen}")
        return ready

    def run(self, main_gone: Callable[[float], bool]) -> str:
        """Wait; `main_gone(seconds)` pauses and says whether the main process ended. Empty if ready, else the reason."""
        start = self.now()
        while True:
            if stranger := self.stranger():
                return stranger
            if self.probe() and not (stranger := self.stranger()):
                # The server may have died while somebody else answered.
                return "" if not main_gone(0) else "the server ended while it started"
            elapsed = self.now() - start
            if elapsed >= self.timeout:
                return f"not ready after {self.timeout:g} s ({self.last})"
            if main_gone(FAST_POLL if elapsed < FAST_FOR else POLL):
                return f"the server ended while it started ({self.last or 'it never answered'})"


def _notify(text: str) -> None:
    """Tell systemd the unit's StatusText (sd_notify(3)); it is no loss where that fails."""
    target = os.environ.get("NOTIFY_SOCKET", "")
    if target:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto(f"STATUS={text}".encode(), "\0" + target[1:] if target[0] == "@" else target)
            except OSError:
                return


def _give_up(reason: str) -> int:
    _notify(f"Not ready: {reason}")
    print(f"<3>{reason}", file=sys.stderr)
    return 1


def main() -> int:
    """Run as ExecStartPost=; see the unit that cortexd writes."""
    parser = argparse.ArgumentParser(description="Wait until a model's server is ready.")
    parser.add_argument("--pid", required=True, help="the unit's main process; systemd gives none if it is gone")
    parser.add_argument("--address", required=True, help="address to probe")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True, help="health endpoint")
    parser.add_argument("--timeout", type=float, required=True, help="seconds")
    args = parser.parse_args()
    # A stop was asked for while the server loads: end clean, or the unit would count as failed.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: os._exit(0))
    try:
        pidfd = os.pidfd_open(int(args.pid))
    except (OSError, ValueError):
        return _give_up("the server ended at once")
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    host = f"[{args.address}]" if ":" in args.address else args.address
    waiter = Waiter(
        address=args.address,
        port=args.port,
        host=f"{host}:{args.port}",
        path=args.path,
        timeout=args.timeout,
        say=_notify,
        cgroup=own_cgroup(),
    )
    reason = waiter.run(lambda seconds: bool(poll.poll(seconds * 1000)))
    return _give_up(reason) if reason else 0


if __name__ == "__main__":
    sys.exit(main())
