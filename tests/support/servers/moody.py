"""A llama-server's stand-in that misbehaves on demand: the file of --mood says how, one word, read all the time.

    well      answers as llama-server does               hang      answers nothing, and does nothing
    drip      a byte of its answer now and then          drip-head the same with its headers
    endless   an answer without end                      length    less than Content-Length says
    redirect  302, to itself                             html      200 and a page of somebody else's
    error     500                                        noise     no HTTP
    refuse    nobody listens any more                    close     ends every connection at once
    busy      no answer in time, but its metrics count   spin      no answer, and a busy thread
    slow      the same, but generates when asked to      lie       healthy, and generates nothing
    noisy-lie the same with a busy thread                asleep    healthy, generates nothing, and says that it sleeps

A mood that is older than the process is no longer its mood: after a restart it is well.

Standard library only: it is run as a program of its own inside a model's sandbox.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BORN = time.time()
_SILENT = ("hang", "busy", "spin", "slow")
_LYING = ("lie", "noisy-lie", "asleep")


class Server(ThreadingHTTPServer):
    """Has a mood, and counts its work."""

    daemon_threads = True
    file: Path
    counted = 0

    @property
    def mood(self) -> str:
        """The word of the moment."""
        try:
            return self.file.read_text().strip() if self.file.stat().st_mtime > BORN else "well"
        except FileNotFoundError:
            return "well"


class Handler(BaseHTTPRequestHandler):
    """Answers by mood."""

    server: Server

    def say(self, body: bytes, status: int = 200, length: int | None = None) -> None:
        """A whole answer."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Health, metrics, props."""
        mood = self.server.mood
        if self.path == "/props":
            self.say(b'{"is_sleeping":true}' if mood == "asleep" else b'{"is_sleeping":false}')
        elif self.path == "/metrics" and mood not in ("hang", "spin"):
            self.server.counted += mood == "busy"
            self.say(b"llamacpp:tokens_predicted_total %d\n" % self.server.counted)
        else:
            with contextlib.suppress(OSError):
                self.misbehave(mood)

    def misbehave(self, mood: str) -> None:
        """What the health endpoint answers."""
        if mood in _SILENT:
            threading.Event().wait()
        elif mood == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            while not time.sleep(0.05):
                self.wfile.write(b" ")
        elif mood == "drip-head":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not time.sleep(0.05):
                self.wfile.write(b"A: b\r\n")
        elif mood == "endless":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                self.wfile.write(bytes(65536))
        elif mood == "redirect":
            self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /health\r\nContent-Length: 0\r\n\r\n")
        elif mood == "noise":
            self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        elif mood == "error":
            self.say(b"{}", 500)
        elif mood == "html":
            self.say(b"<html>Welcome!</html>")
        elif mood == "length":
            self.say(b"{}", length=100)
        elif mood != "close":
            self.say(b'{"status":"ok"}')

    def do_POST(self) -> None:
        """Generate a token."""
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.mood in _LYING or self.server.mood in ("hang", "spin", "busy"):
            threading.Event().wait()
        self.server.counted += 1
        self.say(b'{"content":"a"}')

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the journal is read by tests."""


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--version", action="version", version="moody")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mood", type=Path, required=True)
    args, _ = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server = Server((args.host, args.port), Handler)
    server.file = args.mood
    threading.Thread(target=server.serve_forever, daemon=True).start()
    listening = True
    while True:
        mood = server.mood
        if mood == "refuse" and listening:
            server.shutdown()
            server.server_close()
            listening = False
        if mood in ("spin", "slow", "noisy-lie"):
            end = time.monotonic() + 0.05
            while time.monotonic() < end:
                pass
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
