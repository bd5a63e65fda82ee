#!/usr/bin/python3 -I
"""A server that does what it is told, in place of llama-server: it is healthy, and at a request uses what its limits are about.

--load SECONDS: it loads for that long before it answers. --crash-after SECONDS: then it ends with status 1.
"""

import http.server
import os
import signal
import sys
import threading
import time
import urllib.parse

MIB = 1 << 20


def option(name: str, default: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def child(work) -> bool:  # type: ignore[no-untyped-def]
    """Have a process of its own do it; whether there could be one."""
    try:
        pid = os.fork()
    except OSError:
        return False
    if pid == 0:
        work()
        os._exit(0)
    children.append(pid)
    return True


def hold(mib: int) -> None:
    held = [bytearray(os.urandom(64) * (MIB // 64)) for _ in range(mib)]
    while held:
        signal.pause()


def burn() -> None:
    while True:
        pass


def rest(_: int) -> int:
    while children:
        pid = children.pop()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return 0


children: list[int] = []
DEEDS = {
    "/hold": lambda count: child(lambda: hold(count)),
    "/burn": lambda count: sum(child(burn) for _ in range(count)),
    "/fork": lambda count: sum(child(signal.pause) for _ in range(count)),
    "/rest": rest,
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        if address.path in DEEDS:
            done = int(DEEDS[address.path](int(address.query or 1)))
            self.answer(200, b"%d" % done)
        elif address.path == "/health":
            self.answer(200, b'{"status":"ok"}')
        else:
            self.answer(404, b"{}")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if "--version" in sys.argv:
    sys.exit()
if fate := option("--crash-after", ""):
    end = threading.Timer(float(fate), os._exit, [1])
    end.daemon = True
    end.start()
time.sleep(float(option("--load", "0")))
http.server.HTTPServer((option("--host", "127.0.0.1"), int(option("--port", "0"))), Handler).serve_forever()
