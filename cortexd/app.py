"""The daemon: composed, started, said to be ready, run until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import gc
import logging
import os
import resource
import signal
import sys
from contextlib import AsyncExitStack

from cortexd import logs
from cortexd.api.objects import export
from cortexd.api.server import Server
from cortexd.bus import DBUS, DBUS_PATH, Bus, BusError, BusGone, BusTimeout
from cortexd.errors import Busy, CortexError, StoreFailed
from cortexd.health.probe import Prober
from cortexd.manager import Manager
from cortexd.names import BUS_NAME, MANAGER_INTERFACE, ROOT_PATH
from cortexd.notify import notify, watchdog_interval
from cortexd.scope import Scope, user_scope
from cortexd.store import Store
from cortexd.store.files import is_passing
from cortexd.systemd.client import SystemdClient
from cortexd.systemd.logind import LogindClient
from cortexd.units.loadable import check_loadable
from cortexd.units.tools import find_tools
from cortexd.version import VERSION

log = logging.getLogger("cortexd.app")  # also where it is run as __main__

_BUS_DIES = 1.0
"""Seconds from the end of the bus to ours. When a unit changes its state, by its process's end or its STOPPING=1, before systemd's
manager has seen that dbus-daemon is dead, the manager connects to the socket which nobody serves any more, and waits there for
ever (measured on 252; a few milliseconds are between the two, some twenty on a busy machine)."""


async def run(scope: Scope) -> int:
    """Reconcile, export, take the name, READY: in this order, so that no caller meets an unready daemon.

    Returns the exit status: 0 after SIGTERM, 1 when the bus has gone, which systemd repairs by starting us again.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal's end, or "reload": all is read when it is asked for
    os.umask(0o077)
    raise_descriptors()
    async with AsyncExitStack() as closing:
        closing.callback(os.close, take_folder(scope))
        bus = await Bus.connect(scope.bus_address)
        closing.callback(bus.close)
        # Before anything is looked at: the folder, which is locked, may have been deleted under the other one.
        (taken,) = await bus.call(DBUS, DBUS_PATH, DBUS, "NameHasOwner", "s", [BUS_NAME])
        if taken:
            return _second()
        store = await Store.open(scope.database)
        closing.push_async_callback(store.close)
        prober = Prober()
        systemd = SystemdClient(bus, lambda unit: check_loadable(scope.unit_folder, unit))
        closing.push_async_callback(systemd.close)
        logind = LogindClient(scope.system_bus_address)
        closing.callback(logind.close)
        await systemd.start()
        manager = Manager(scope, store, systemd, logind, prober, find_tools(systemd.version))
        closing.push_async_callback(manager.close)
        server = Server(bus, ROOT_PATH)
        closing.push_async_callback(server.close)
        await bus.on_leave(server.left)
        await manager.start()
        await logind.listen(manager.resumed)
        export(bus, server, manager)
        server.add(logs.LOG_CONTROL_PATH, logs.LogControl())
        if not await bus.request_name(BUS_NAME):
            return _second()
        notify("READY=1")
        gc.freeze()  # what a start makes stays
        gc.enable()
        finishing = asyncio.create_task(manager.go_on())
        closing.push_async_callback(_cancel, finishing)
        proving = asyncio.create_task(manager.prove())
        closing.push_async_callback(_cancel, proving)
        log.info("cortexd %s is ready: %d models", VERSION, len(manager.catalog.models))
        return await _serve(bus, stop)


def _second() -> int:
    log.error("%s is owned by another process; only one cortexd can run for a user", BUS_NAME)
    return 1


def raise_descriptors() -> None:
    """Take all the file descriptors that we may have: two are open for each model that runs, and three for each that is
    being probed, while the usual 1024 are only there for programs that use select(2). asyncio uses epoll(7)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _cancel(task: asyncio.Task[None]) -> None:
    """End it, and let it put away what it has begun."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def take_folder(scope: Scope) -> int:
    """Be the only one at work in our folder; the descriptor holds it. Raises Busy, before anything was touched."""
    try:
        scope.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(scope.data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise StoreFailed(f"{scope.data} cannot be used: {e.strerror}; check it and its folder, or move it away") from e
    if os.fstat(descriptor).st_uid != os.getuid():  # it may be a link of the user's to another disk
        os.close(descriptor)
        raise StoreFailed(f"{scope.data} belongs to another user; move it away")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Busy(f"another cortexd is at work in {scope.data}; only one can run for a user") from None
    return descriptor


def _unusable(error: StoreFailed) -> int:
    """Say so where `systemctl status` and cortexctl find it. The exit status tells systemd whether another start may mend
    it: 1, or EX_CONFIG where it would not."""
    log.error("%s", error)
    notify(f"STATUS={error}")
    return 1 if is_passing(error.__cause__) else os.EX_CONFIG


async def _serve(bus: Bus, stop: asyncio.Event) -> int:
    watchdog = asyncio.create_task(_watchdog(bus))
    bus.closed.add_done_callback(lambda _: stop.set())
    await stop.wait()
    watchdog.cancel()
    if bus.closed.done():
        log.error("the connection to the bus has ended")
        await asyncio.sleep(_BUS_DIES)
        return 1
    notify("STOPPING=1")
    log.info("stopping; models go on running")
    return 0


async def _watchdog(bus: Bus) -> None:
    """Tell systemd that we live as long as a call to ourselves over the bus is answered: a connection can die silently."""
    interval = watchdog_interval()
    while interval:
        try:
            await bus.call(
                BUS_NAME, ROOT_PATH, "org.freedesktop.DBus.Properties", "Get", "ss", [MANAGER_INTERFACE, "Version"],
                timeout=interval / 3,
            )  # fmt: skip
            notify("WATCHDOG=1")
        except (BusError, BusTimeout, BusGone) as e:
            log.warning("no answer to ourselves over the bus: %s", e)
        await asyncio.sleep(interval / 3)


def main() -> None:
    """The command `cortexd`."""
    parser = argparse.ArgumentParser(
        prog="cortexd",
        description="Manage AI model servers as systemd user services. Usually started by systemd or the bus.",
        epilog="Talk to it with cortexctl(1).",
    )
    parser.add_argument("--version", action="version", version=f"cortexd {VERSION}")
    parser.add_argument("--debug", action="store_true", help="log everything")
    args = parser.parse_args()
    logs.set_up(to_journal="JOURNAL_STREAM" in os.environ)
    if args.debug:
        logs.LOGGER.setLevel(logging.DEBUG)
    gc.disable()  # until it has started: to look for garbage among all that is made would take a seventh of the time
    try:
        status = asyncio.run(run(user_scope(os.environ)))
    except StoreFailed as e:
        status = _unusable(e)
    except (CortexError, BusGone, BusError, BusTimeout, OSError) as e:
        log.error("%s", e)
        status = 1
    sys.exit(status)


if __name__ == "__main__":
    main()
