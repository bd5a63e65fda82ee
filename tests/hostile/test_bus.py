"""The bus as a weapon: every method with whatever arguments, a flood, callers that vanish. The daemon stays well."""

from __future__ import annotations

import asyncio
import os
import random
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cortexd.bus import Bus, BusError, BusGone, BusTimeout, Variant
from cortexd.names import BUS_NAME, MODEL_PREFIX, ROOT_PATH
from tests.hostile.values import NASTY
from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.wait import aio_until

COSTLY = ("Unregister", "StartModel", "Start", "Restart", "RestartModel", "Check")
"""Methods that do much where they succeed."""
CALLS, CLIENTS, PROPERTIES = 10_000, 50, "org.freedesktop.DBus.Properties"
PATHS = [ROOT_PATH, MODEL_PREFIX + "target", MODEL_PREFIX + "nobody", ROOT_PATH + "/job/1", "/"]
TEXTS = [text for text in NASTY if "\0" not in text and text.isprintable()] + [
    "target",
    "nobody",
    "*",
    "path",
    "a" * 5000,
    "",
    "../../etc",
]
ADDRESS = os.environ.get("DBUS_SESSION_BUS_ADDRESS", "")


def methods() -> list[tuple[str, str, str]]:
    """Interface, member and signature of every method there is."""
    found = []
    for file in sorted((lab.PROJECT / "dbus").glob("*.xml")):
        for interface in ET.parse(file).getroot().iter("interface"):
            for method in interface.iter("method"):
                signature = "".join(arg.get("type", "") for arg in method.iter("arg") if arg.get("direction") == "in")
                found.append((interface.get("name", ""), method.get("name", ""), signature))
    return found


def value(dice: random.Random, kind: str) -> Any:
    """A value of a type."""
    if kind == "s":
        return dice.choice(TEXTS)
    if kind == "as":
        return [dice.choice(TEXTS) for _ in range(dice.randrange(4))]
    if kind == "ay":
        return bytes(dice.randrange(256) for _ in range(dice.randrange(20)))
    if kind == "a(sa{sv})":
        return [(value(dice, "s"), value(dice, "a{sv}")) for _ in range(dice.randrange(4))]
    if kind == "a{sv}":
        keys = [
            "force",
            "timeout",
            "settings",
            "limit",
            "since",
            "port",
            "memory",
            "env",
            "host",
            "extra_args",
            *TEXTS[:8],
        ]
        return {dice.choice(keys): _variant(dice) for _ in range(dice.randrange(4))}
    if kind in "tuixnqyd":
        return dice.choice([0, 1, 255])
    return True


def _variant(dice: random.Random) -> Variant:
    kind = dice.choice(["s", "as", "ay", "t", "u", "b", "d"])
    return Variant(kind, value(dice, kind))


def split(signature: str) -> list[str]:
    """The types of these methods' arguments."""
    found, rest = [], signature
    while rest:
        kind = next(kind for kind in ("a(sa{sv})", "a{sv}", "as", "ay", rest[0]) if rest.startswith(kind))
        found.append(kind)
        rest = rest[len(kind) :]
    return found


def body(dice: random.Random, signature: str) -> tuple[str, list[Any]]:
    """Arguments for it, or for something else."""
    kinds = split(signature)
    if dice.random() < 0.3:
        kinds = [dice.choice(["s", "as", "ay", "a{sv}", "u", "t", "b"]) for _ in range(dice.randrange(5))]
    return "".join(kinds), [value(dice, kind) for kind in kinds]


def state(daemon: Daemon) -> dict[str, int]:
    """What a leak would show in: descriptors, threads, KiB of memory."""
    assert daemon.process is not None and daemon.process.poll() is None, "cortexd has ended"
    process = Path(f"/proc/{daemon.process.pid}")
    lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return {
        "fds": len(list((process / "fd").iterdir())),
        "threads": int(lines["Threads"]),
        "memory": int(lines["VmRSS"].split()[0]),
    }


async def one(
    bus: Bus, path: str, interface: str, member: str, signature: str, arguments: list[Any], timeout: float = 20
) -> str:
    """The name of the error of one call, or "ok"; its words are none of Python's."""
    try:
        await bus.call(BUS_NAME, path, interface, member, signature, arguments, timeout=timeout)
    except BusError as e:
        assert "Traceback" not in str(e) and 'File "' not in str(e) and "internal error" not in str(e), (
            member,
            arguments,
            str(e),
        )
        return e.name
    return "ok"


@pytest.fixture(scope="module")
def target(shared_daemon: Daemon) -> Daemon:
    """A daemon with a model that never runs."""
    Cortex().register_tiny("target")
    return shared_daemon


def no_traceback(daemon: Daemon, before: int) -> None:
    log = daemon.log.read_text()[before:]
    assert "Traceback" not in log and "Task exception" not in log, log[-3000:]


async def test_every_method_with_whatever_arguments(target: Daemon) -> None:
    dice, before, seen = random.Random(), len(target.log.read_text()), Counter[str]()
    bus = await Bus.connect(ADDRESS)
    for interface, member, signature in methods():
        for _ in range(10 if member in COSTLY else 40):
            kinds, arguments = body(dice, signature)
            seen[await one(bus, dice.choice(PATHS), interface, member, kinds, arguments)] += 1
    bus.close()
    assert len(seen) > 3, seen  # answered in several ways
    state(target)
    no_traceback(target, before)


async def test_a_flood_from_fifty_and_one_who_is_served(target: Daemon) -> None:
    before = len(target.log.read_text())
    buses = [await Bus.connect(ADDRESS) for _ in range(CLIENTS)]
    reads: list[tuple[str, str, str, list[Any]]] = [
        (ROOT_PATH, "ListJobs", "", []),
        (ROOT_PATH, "GetModel", "s", ["target"]),
        (ROOT_PATH, "ListEvents", "asa{sv}", [[], {"limit": Variant("u", 1)}]),
    ]

    async def flood(bus: Bus, number: int) -> Counter[str]:
        outcome = Counter[str]()
        for n in range(number):
            path, member, signature, arguments = reads[n % len(reads)]
            outcome[await one(bus, path, BUS_NAME + ".Manager", member, signature, arguments, timeout=60)] += 1
        return outcome

    async def wave(number: int) -> Counter[str]:
        return sum(await asyncio.gather(*(flood(bus, number // CLIENTS) for bus in buses)), Counter[str]())

    await wave(CALLS // 10)  # whatever is kept for good is there now
    calm, slowest, other = state(target), 0.0, await Bus.connect(ADDRESS)
    running = asyncio.create_task(wave(CALLS))
    while not running.done():
        start = time.monotonic()
        await one(other, ROOT_PATH, PROPERTIES, "Get", "ss", [BUS_NAME + ".Manager", "Version"])
        slowest = max(slowest, time.monotonic() - start)
    outcome = await running
    for bus in (*buses, other):
        bus.close()
    assert outcome.total() == CALLS and set(outcome) <= {"ok", "org.freedesktop.DBus.Error.LimitsExceeded"}, outcome
    assert outcome["ok"] > CALLS / 2, outcome
    assert slowest < 5, f"another client waited {slowest:.1f} s"
    await aio_until(lambda: state(target)["fds"] <= calm["fds"], "its descriptors as before")
    after = state(target)
    assert after["threads"] <= calm["threads"] + 8 and after["memory"] < calm["memory"] + 32 * 1024, (calm, after)
    no_traceback(target, before)


async def test_callers_that_vanish_in_the_middle(target: Daemon) -> None:
    before, calm = len(target.log.read_text()), state(target)
    for n in range(100):
        bus = await Bus.connect(ADDRESS)
        asked: list[tuple[str, str, str, str, list[Any]]] = [
            (PATHS[1], BUS_NAME + ".Model", "Why", "a{sv}", [{}]),
            (PATHS[1], BUS_NAME + ".Model", "CheckHealth", "a{sv}", [{}]),
            (ROOT_PATH, BUS_NAME + ".Manager", "ListEvents", "asa{sv}", [[], {}]),
            (PATHS[1], BUS_NAME + ".Model", "Set", "a{sv}a{sv}", [{"CPUWeight": Variant("t", 1 + n)}, {}]),
        ]
        calls = [
            asyncio.create_task(one(bus, path, interface, member, signature, arguments))
            for path, interface, member, signature, arguments in asked
        ]
        await asyncio.sleep(0)
        bus.close()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, str | BusGone | BusTimeout), outcome
    await aio_until(lambda: state(target)["fds"] <= calm["fds"] + 2, "its descriptors as before")
    no_traceback(target, before)
    assert "target" in Cortex().out("list")
