"""Command line, signals and the process's own outside: see `__main__.py`."""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from cortexd.waiter import signs
from cortexd.waiter.http import Server
from cortexd.waiter.sockets import own_group
from cortexd.waiter.waiting import Key, Waiter
from cortexd.waiter.watch import GaveUp, Watch


def main() -> int:
    """Run as ExecStartPost=; see the unit that cortexd writes."""
    args = _arguments()
    # A stop was asked for while the server loads: end clean, or the unit would count as failed.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: os._exit(0))
    try:
        try:
            pidfd = os.pidfd_open(int(args.pid))
        except (OSError, ValueError):
            raise GaveUp("the server ended at once") from None
        _wait(args, pidfd)
    except GaveUp as e:
        _notify(f"STATUS=Not ready: {e}")
        sys.stderr.write(f"<3>Not ready: {e}\n")  # by that it is known for ours among the server's lines
        return 1
    _notify("STATUS=Ready")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Wait until a model's server is ready.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(
            prog, width=100
        ),  # else it asks the terminal, by more modules
    )
    parser.add_argument("--pid", required=True, help="the unit's main process; systemd gives none if it is gone")
    parser.add_argument("--address", required=True, help="address to probe")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True, help="health endpoint")
    parser.add_argument("--timeout", type=float, required=True, help="seconds in all")
    parser.add_argument("--stall", type=float, required=True, help="seconds without a sign of progress")
    parser.add_argument("--hint", type=Path, help="a file that cortexd touches when it sees progress")
    parser.add_argument("--key-variable", default="", help="the variable with the key that the server asks for")
    parser.add_argument("--load", choices=("ollama",), help="what to do with the server that answers")
    parser.add_argument("--model", help="with --load: what is to be loaded")
    parser.add_argument("--from", dest="file", type=Path, help="with --load: the GGUF file that it is made of")
    args = parser.parse_args()
    if args.load and not args.model:
        parser.error("--load needs --model")
    return args


def _wait(args: argparse.Namespace, pidfd: int) -> None:
    group = own_group()
    watch = Watch(
        _poller(pidfd), lambda now: signs.read(now, group, args.hint), _notify, timeout=args.timeout, stall=args.stall
    )
    server = Server(args.address, args.port)
    key = Key(args.key_variable, _printable(os.environ.get(args.key_variable, "")))
    waiter = Waiter(watch, server, args.path, group.stat().st_ino if group else 0, key)
    waiter.run((lambda: _load_ollama(watch, server, args.model, args.file)) if args.load else None)


def _printable(key: str) -> str:
    """A key, or nothing where a header could not carry it as it is."""
    return key if key.isascii() and key.isprintable() and key == key.strip() else ""


def _load_ollama(watch: Watch, server: Server, model: str, file: Path | None) -> None:
    from cortexd.waiter.ollama import load  # json and hashlib, which no other backend needs

    load(watch, server, model, file)


def _poller(pidfd: int) -> Callable[[float, int, int], tuple[bool, bool]]:
    """See Watch."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)

    def wait(seconds: float, fd: int, events: int) -> tuple[bool, bool]:
        if fd >= 0:
            poll.register(fd, events)
        try:
            ready = [found for found, _ in poll.poll(seconds * 1000)]
        finally:
            if fd >= 0:
                poll.unregister(fd)
        return pidfd in ready, fd in ready

    return wait


def _notify(text: str) -> None:
    """Tell systemd (sd_notify(3)); it is no loss where that fails."""
    target = os.environ.get("NOTIFY_SOCKET", "")
    if target:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.sendto(text.encode(), "\0" + target[1:] if target[0] == "@" else target)
            except OSError:
                return
