"""Run inside a model's sandbox by `cortexctl check`: tries to open what the server reads and to write where it writes.

Standard library only, run as a script with an empty environment. Says what failed as the unit's status, `NUMBER:ERRNO`
each, where the number is the path's among all arguments; nothing but "ok" where nothing did. Leaves no file behind.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import stat
import sys

_MAX_SAID = 200  # the manager takes some 4000 bytes


def reading(path: str) -> None:
    """Raise OSError where a file or folder cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.scandir(descriptor).close()
        else:
            os.read(descriptor, 1)
    finally:
        os.close(descriptor)


def running(path: str) -> None:
    """Raise OSError where a program cannot be executed."""
    reading(path)
    if not os.access(path, os.X_OK):
        raise PermissionError(13, "")


def writing(path: str) -> None:
    """Raise OSError where no file can be made in a folder."""
    try:
        os.close(os.open(path, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as e:
        if e.errno not in (21, 22, 95):  # EISDIR, EINVAL, EOPNOTSUPP: the file system knows no nameless files
            raise
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "") from None


def main() -> int:
    """Try all, and tell."""
    parser = argparse.ArgumentParser()
    for kind in ("run", "read", "write"):
        parser.add_argument(f"--{kind}", action="append", default=[])
    args = parser.parse_args()
    tries = [(running, p) for p in args.run] + [(reading, p) for p in args.read] + [(writing, p) for p in args.write]
    failed = []
    for number, (attempt, path) in enumerate(tries):
        try:
            attempt(path)
        except OSError as e:
            failed.append(f"{number}:{e.errno or 5}")
    tell(" ".join(failed[:_MAX_SAID]) or "ok")
    return 0


def tell(status: str) -> None:
    """sd_notify(3), and its barrier: the manager has to take it before this process is gone, or forgets whose it is."""
    read_end, write_end = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
        sock.send(f"STATUS={status}".encode())
        socket.send_fds(sock, [b"BARRIER=1"], [write_end])
    os.close(write_end)
    select.select([read_end], [], [], 5)


if __name__ == "__main__":
    sys.exit(main())
