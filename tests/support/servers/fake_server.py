"""A model server's stand-in: takes any backend's command line, and does what its --fake-... options say.

    --fake-gate FIFO       it loads until somebody writes a line there; until then the port refuses, or
    --fake-loading 503     answers with this status
    --fake-exit STATUS     ends with this status, at once or when the gate opens
    --fake-tell FILE       writes its argv, environment and process id there as JSON
    --fake-run FILE        runs the shell commands of this file (JSON, name to command) before it serves, and writes
                           name to [status, output] to FILE with .out behind it
    --fake-ignore-term     does not end on SIGTERM
    --fake-flood LINES      prints so many lines, and then serves
    --fake-key VARIABLE    answers 401 to everybody who does not show what this variable has
    --fake-child           leaves the port to a child that outlives the main process

Standard library only: it is run as a program of its own inside a model's sandbox.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Says 200 to every GET once it is ready."""

    ready_status = 200
    wanted = ""


class IPv6Server(Server):
    """The same on an IPv6 address."""

    address_family = socket.AF_INET6


class Handler(BaseHTTPRequestHandler):
    """One answer for all."""

    server: Server

    def do_GET(self) -> None:
        """The status of the moment."""
        # What the health endpoint of llama.cpp says, whose arguments those are; the others' says nothing.
        body = b'{"status":"ok"}' if "--alias" in sys.argv else b""
        refused = self.server.wanted and self.headers["Authorization"] != self.server.wanted
        self.send_response(401 if refused else self.server.ready_status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the journal is read by tests."""


def tell(file: str) -> None:
    """argv and environment as they arrived, byte by byte."""
    state = {"argv": sys.argv[1:], "environ": dict(os.environ), "pid": os.getpid()}
    Path(file).write_text(json.dumps(state))


def run_commands(file: str) -> None:
    """What commands say in here."""
    found = {}
    for name, command in json.loads(Path(file).read_text()).items():
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        found[name] = [done.returncode, done.stdout + done.stderr]
    part = Path(file + ".part")
    part.write_text(json.dumps(found))
    part.replace(file + ".out")


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--version", action="version", version="fake server")
    parser.add_argument("--host", "--hostname", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fake-gate", type=Path)
    parser.add_argument("--fake-loading", type=int)
    parser.add_argument("--fake-exit", type=int)
    parser.add_argument("--fake-tell")
    parser.add_argument("--fake-run")
    parser.add_argument("--fake-ignore-term", action="store_true")
    parser.add_argument("--fake-key")
    parser.add_argument("--fake-child", action="store_true")
    parser.add_argument("--fake-flood", type=int, default=0)
    args, _ = parser.parse_known_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN if args.fake_ignore_term else lambda *_: os._exit(0))
    if args.fake_tell:
        tell(args.fake_tell)
    if args.fake_run:
        run_commands(args.fake_run)
    for number in range(args.fake_flood):
        print(f"flood {number}")
    if args.fake_exit is not None:
        if args.fake_gate:
            args.fake_gate.read_text()
        print("fake server: something went wrong", file=sys.stderr, flush=True)
        return int(args.fake_exit)
    if args.fake_gate and args.fake_loading is None:
        args.fake_gate.read_text()
    server = (IPv6Server if ":" in args.host else Server)((args.host, args.port), Handler)
    if args.fake_key:
        server.wanted = f"Bearer {os.environ.get(args.fake_key)}"
    if args.fake_gate and args.fake_loading is not None:
        server.ready_status = args.fake_loading
        threading.Thread(target=lambda: open_gate(server, args.fake_gate), daemon=True).start()
    if args.fake_child and os.fork():
        signal.pause()
    server.serve_forever()
    return 0


def open_gate(server: Server, gate: Path) -> None:
    """Ready as soon as the gate opens."""
    gate.read_text()
    server.ready_status = 200


if __name__ == "__main__":
    sys.exit(main())
