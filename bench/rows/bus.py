"""The D-Bus side: cortexd, and an echo service on the same library."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from bench import echo, seam
from bench.load import Client, address, calls_per_second
from bench.measure import Result, in_turns, run, timed
from bench.peers import PROJECT
from bench.world import World, name, spawn, until
from cortexd.api.interfaces import load
from cortexd.names import BUS_NAME, MANAGER_INTERFACE, MODEL_INTERFACE, ROOT_PATH, model_path

_LIBRARIES = {"dbus-next": "dbus_next", "dbus-fast": "dbus_fast"}
_INSTALLED = "dbus-next" if sys.version_info < (3, 15) else "dbus-fast"
"""What cortexd is installed with here (pyproject.toml), so what it has to reach is beside an echo service on that one."""
_NAMES = {"cortexd": "cortexd", "seam": "cortexd's object layer (seam)", "echo": "echo"}
_LISTENERS = 20
_BURST = 50


def measure(world: World) -> Result:
    """On both libraries that the seam has."""
    result = Result("D-Bus: calls, a list of 1,000 models, signals to 20 clients")
    size = world.sizes[-1]
    world.models(size)
    listing = world.work / "listing.json"
    listing.write_text(json.dumps(_listing(world)))
    try:
        for library, module in _LIBRARIES.items():
            run(["systemctl", "--user", "set-environment", f"CORTEX_DBUS={module.removeprefix('dbus_')}"])
            world.restart()
            world.call("GetModel", "s", name(0))
            with _service(world, echo.NAME, PROJECT / "bench" / "echo.py", module, listing):
                _on(world, result, library, size)
    finally:
        run(["systemctl", "--user", "unset-environment", "CORTEX_DBUS"])
        world.restart()
    result.notes += [
        f"cortexd runs on {_INSTALLED} here, so that its target is against the echo service on that one; the other is shown. On "
        "dbus-next it reads and writes messages itself (cortexd/transport.py), on dbus-fast that library does: compiled, but each "
        "value is copied once more on its way in and out.",
        "The echo service stands on the library's own object layer and does nothing; cortexd checks arguments and looks models up. "
        "The daemon's own signals are EventAdded, one for each ResetFailed of a model: the event is on disk before it is told of. "
        "Those of the seam (bench/seam.py) come from a method that sends one and does nothing else, on cortexd's object layer: "
        "that is not cortexd, but shows what a signal alone costs.",
    ]
    return result


def _listing(world: World) -> list[dict[str, Any]]:
    """What ListModels says, with signatures: the echo service answers with the same."""
    kinds = load(MODEL_INTERFACE).properties
    (models,) = world.call("ListModels", "asa{sv}", [], {})
    return [{key: [kinds[key].signature, value] for key, value in model.items()} for model in models]


@contextmanager
def _service(world: World, name: str, *command: object, **environment: str) -> Iterator[None]:
    process = spawn(world.venv / "python", *command, **environment)
    try:
        until(lambda: name in run(["busctl", "--user", "list", "--acquired", "--no-legend"]), f"the service {name}")
        yield
    finally:
        process.kill()
        process.wait()


def _on(world: World, result: Result, library: str, size: int) -> None:
    seconds = 0.1 if world.short else 0.5
    ours = (BUS_NAME, ROOT_PATH, MANAGER_INTERFACE)
    theirs = (echo.NAME, echo.PATH, echo.NAME)
    for count in (1, 50):
        clients = [Client(address()) for _ in range(count)]
        echoes = [Client(address()) for _ in range(count)]
        for client in clients:
            client.prepare(*ours, "GetModel", "s", name(0))
        for client in echoes:
            client.prepare(*theirs, "Echo", "s", name(0))
        what = f"calls with {count} client{'s' if count > 1 else ''}, {library}"
        _compare(
            world, result, library, what,
            cortexd=partial(calls_per_second, clients, seconds),
            echo=partial(calls_per_second, echoes, seconds),
        )  # fmt: skip
        for client in clients + echoes:
            client.close()
    client, other = Client(address()), Client(address())
    client.prepare(*ours, "ListModels", "asa{sv}", [], {})
    other.prepare(*theirs, "ListModels")
    what = f"list of {size} models, {library}"
    _compare(world, result, library, what, cortexd=lambda: _answered(client), echo=lambda: _answered(other))
    client.close()
    other.close()
    with _service(world, seam.NAME, "-m", "bench.seam", CORTEX_DBUS=_LIBRARIES[library].removeprefix("dbus_")):
        _fan_out(world, result, library)


def _fan_out(world: World, result: Result, library: str) -> None:
    """The daemon, the seam and the echo service, each with a client that asks and others that listen."""
    asked: dict[str, tuple[str, str, tuple[Any, ...]]] = {
        "cortexd": (
            MANAGER_INTERFACE, "EventAdded",
            (BUS_NAME, model_path(name(0)), MODEL_INTERFACE, "ResetFailed", "a{sv}", {}),
        ),
        "seam": (seam.NAME, "Notified", (seam.NAME, seam.PATH, seam.NAME, "Notify")),
        "echo": (echo.NAME, "Notified", (echo.NAME, echo.PATH, echo.NAME, "Notify")),
    }  # fmt: skip
    opened: list[Client] = []
    bursts: dict[str, Callable[[], float]] = {}
    for who, (interface, member, message) in asked.items():
        client, *listeners = (Client(address()) for _ in range(1 + _LISTENERS))
        client.prepare(*message)
        for listener in listeners:
            listener.subscribe(f"type='signal',interface='{interface}',member='{member}'")
        bursts[who] = partial(_burst, client, listeners)
        opened += [client, *listeners]
    _compare(world, result, library, f"signals a second, each to {_LISTENERS} clients, {library}", **bursts)
    for each in opened:
        each.close()


def _compare(world: World, result: Result, library: str, what: str, **ways: Callable[[], float]) -> None:
    """Each way, in turns, beside the one that is called `echo`. What is required is cortexd's, on the library it has here."""
    found = in_turns(world.runs, {f"{_NAMES[way]}: {what}": action for way, action in ways.items()})
    theirs = f"{_NAMES['echo']}: {what}"
    for each, values in found.items():
        result.add(each, "1/s", values, "" if each == theirs else theirs)
    transport = " (cortexd reads and writes with its own transport)" if library == "dbus-next" else ""
    for way in [way for way in ways if way != "echo"]:
        whose = "" if way == "cortexd" else f"{_NAMES[way]}: "
        result.ratio(
            f"{whose}{what}: ÷ echo service{transport}", f"{_NAMES[way]}: {what}", theirs, 0.5, at_least=True,
            required=way == "cortexd" and library == _INSTALLED,
        )  # fmt: skip


def _answered(client: Client) -> float:
    """How often a second it is answered, asked once."""

    def ask() -> None:
        client.send()
        client.answer()

    return 1e3 / timed(ask)


def _burst(client: Client, listeners: list[Client]) -> float:
    begin = time.perf_counter()
    client.send(_BURST)
    for listener in listeners:
        listener.signals(_BURST)
    taken = time.perf_counter() - begin
    for _ in range(_BURST):
        client.answer()
    return _BURST / taken
