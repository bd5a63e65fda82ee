"""A model server whose every word is for the terminal of whoever reads it: in its log, its answers, and beside them.

    --hostile-mode well     serves, with hostile bodies and headers
    --hostile-mode sick     says ready at first, and then refuses with hostile words
    --hostile-mode dead     prints and ends

Standard library only: it runs inside a model's sandbox.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

ATTACKS = [
    "\x1b[31mcolour\x1b[0m", "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "\x1b]52;c;aGk=\x07", "\x1bPq#0\x1b\\",
    "\x1b_apc\x1b\\", "\x9b31m", "\x9d52;c;aGk=\x9c", "\x85", "\u202eright to left", "\u2066isolate\u2069", "\u200f", "\u061c", "\u2028line",
    "\rover", "\b\b\b", "\x07", "\x00nul", "\x7f", "\ud800", "\U000e0041tag", "\ufeffbom", "\u200bwidth",
]  # fmt: skip
LINE = " ".join(["hostile words:", *ATTACKS, "end"]).encode("utf-8", "surrogatepass")


class Handler(BaseHTTPRequestHandler):
    """One hostile answer for all."""

    asked = 0

    def do_GET(self) -> None:
        """The status of the moment."""
        Handler.asked += 1
        sick = MODE == "sick" and self.path == "/health" and Handler.asked > 1
        body = LINE if sick else b'{"status":"ok"}'
        status = "503" if sick else "200"
        self.wfile.write(
            b"HTTP/1.0 " + status.encode() + b" " + LINE.replace(b"\r", b"") + b"\r\nX-Odd: \x1b[2J\xc2\x9b\r\n"
        )
        self.wfile.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing but what is hostile."""


def speak() -> None:
    """To both outputs, by themselves and in pieces, and to the journal with fields of its own choice."""
    for attack in ATTACKS:
        for stream in (1, 2):
            os.write(stream, b"hostile line " + attack.encode("utf-8", "surrogatepass") + b"\n")
    os.write(2, LINE + b"\n")
    os.write(2, b"error: " + LINE + b" CUDA out of memory\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        text = LINE.replace(b"\n", b" ")
        for field in (b"MESSAGE", b"SYSLOG_IDENTIFIER"):
            message = b"%s\n%s%s\n" % (field, len(text).to_bytes(8, "little"), text)
            try:
                journal.sendto(message + b"PRIORITY=3\n", "/run/systemd/journal/socket")
            except OSError:
                return


def notify() -> None:
    """A status of its own, if systemd takes it from the main process."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"STATUS=" + LINE.replace(b"\n", b" "), address)


def main() -> int:
    """Serve until it is killed."""
    global MODE
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--hostile-mode", default="well")
    args, _ = parser.parse_known_args()
    if args.version:
        os.write(1, LINE + b"\n")
        return 0
    MODE = args.hostile_mode
    Path("/proc/self/comm").write_bytes(b"\x1b[2Jodd")
    speak()
    notify()
    if MODE == "dead":
        return 3
    HTTPServer(("127.0.0.1", args.port), Handler).serve_forever()
    return 0


MODE = "well"
if __name__ == "__main__":
    sys.exit(main())
