"""A model server that tries to get out: it makes every attempt of a list, says which succeeded, and then serves.

Run as a program by hand it makes the same attempts outside the sandbox: what fails there, too, proves nothing.

    --attempts FILE      JSON: name to [kind, argument, ...]; the answers go to FILE with .out behind it

Standard library only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


def attempt(kind: str, *arguments: str) -> str:
    """One attempt: "" where it succeeded, else why not."""
    try:
        ATTEMPTS[kind](*arguments)
    except (OSError, subprocess.SubprocessError, ValueError) as e:
        return str(e) or type(e).__name__
    return ""


def read(path: str, wanted: str = "") -> None:
    """Read a file, in which something is to be found."""
    with Path(path).open("rb") as file:
        data = file.read(1 << 16)
    if wanted.encode() not in data:
        raise ValueError("not in it")


def look(path: str) -> None:
    """Read the names in a folder."""
    list(Path(path).iterdir())


def follow(path: str) -> None:
    """Read where a link leads."""
    Path(path).readlink()


def write(path: str) -> None:
    """Add nothing to a file that is there, or make a new one and take it away again."""
    there = Path(path).exists()
    with Path(path).open("ab"):
        pass
    if not there:
        Path(path).unlink()


def link(path: str) -> None:
    """Leave a link."""
    Path(path).symlink_to("/etc/passwd")
    Path(path).unlink()


def connect(address: str) -> None:
    """Reach a socket; "@name" is an abstract one."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)


def reach(port: str) -> None:
    """Reach a port of this machine's."""
    with socket.create_connection(("127.0.0.1", int(port)), timeout=2):
        pass


def send_signal(pid: str) -> None:
    """Whether a process could be killed: signal 0 has the same permissions."""
    os.kill(int(pid), 0)


def trace(pid: str) -> None:
    """Become its debugger (PTRACE_ATTACH), and let go (PTRACE_DETACH)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, int(pid), None, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.waitpid(int(pid), 0x40000000)  # __WALL
    libc.ptrace(17, int(pid), None, None)


def memory(pid: str) -> None:
    """Open its memory for writing."""
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0):
        pass


def attach(segment: str) -> None:
    """See a segment of System V shared memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    if libc.shmat(int(segment), None, 0) == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def run(command: str) -> None:
    """A shell's command."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=10)
    if done.returncode:
        raise ValueError(f"status {done.returncode}: {(done.stdout + done.stderr).strip()[:200]}")


ATTEMPTS = {"read": read, "look": look, "follow": follow, "write": write, "link": link, "connect": connect, "reach": reach, "signal": send_signal,
            "trace": trace, "memory": memory, "attach": attach, "run": run}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """Well behaved on the outside."""

    def do_GET(self) -> None:
        """Ready."""
        self.send_response(200)
        self.send_header("Content-Length", "15")
        self.end_headers()
        self.wfile.write(b'{"status":"ok"}')

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def main() -> int:
    """Try, tell, serve."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--version", action="version", version="intruder")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--attempts", type=Path)
    args, _ = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if args.attempts:
        found = {name: attempt(*what) for name, what in json.loads(args.attempts.read_text()).items()}
        out = args.attempts.with_suffix(".out")
        out.with_suffix(".part").write_text(json.dumps(found))
        out.with_suffix(".part").replace(out)
    if args.port:
        HTTPServer(("127.0.0.1", args.port), Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
