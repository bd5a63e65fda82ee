"""The D-Bus side: cortexd, and an echo service on the same library."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench import echo, seam
from bench.load import Client, address, calls_per_second
from bench.measure import Result, in_turns, run, timed
from bench.peers import PROJECT
from bench.world import World, name, spawn, until
from cortexd.api.interfaces import load
from cortexd.names import BUS_NAME, MANAGER_INTERFACE, MODEL_INTERFACE, ROOT_PATH

_LIBRARIES = {"dbus-next": "dbus_next", "dbus-fast": "dbus_fast"}
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
    result.notes.append(
        "The echo service stands on the library's own object layer and does nothing; cortexd checks arguments and looks models up. "
        "The signals are those of a method that sends one and does nothing else, on cortexd's own object layer (bench/seam.py)."
    )
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
            world, result, what, "1/s",
            lambda clients=clients: calls_per_second(clients, seconds),
            lambda echoes=echoes: calls_per_second(echoes, seconds),
        )  # fmt: skip
        for client in clients + echoes:
            client.close()
    client, other = Client(address()), Client(address())
    client.prepare(*ours, "ListModels", "asa{sv}", [], {})
    other.prepare(*theirs, "ListModels")
    what = f"list of {size} models, {library}"
    _compare(world, result, what, "1/s", lambda: _answered(client), lambda: _answered(other))
    client.prepare(seam.NAME, seam.PATH, seam.NAME, "Notify")
    other.prepare(*theirs, "Notify")
    with _service(world, seam.NAME, "-m", "bench.seam", CORTEX_DBUS=_LIBRARIES[library].removeprefix("dbus_")):
        _fan_out(world, result, library, client, other)
    client.close()
    other.close()


def _fan_out(world: World, result: Result, library: str, client: Client, other: Client) -> None:
    told = [Client(address()) for _ in range(_LISTENERS)]
    echoed = [Client(address()) for _ in range(_LISTENERS)]
    for listener in told:
        listener.subscribe(f"type='signal',interface='{seam.NAME}',member='Notified'")
    for listener in echoed:
        listener.subscribe(f"type='signal',interface='{echo.NAME}',member='Notified'")
    what = f"signals a second, each to {_LISTENERS} clients, {library}"
    _compare(world, result, what, "1/s", lambda: _burst(client, told), lambda: _burst(other, echoed))
    for each in told + echoed:
        each.close()


def _compare(world: World, result: Result, what: str, unit: str, ours: Any, theirs: Any) -> None:
    ours_named, theirs_named = f"cortexd: {what}", f"echo: {what}"
    found = in_turns(world.runs, {ours_named: ours, theirs_named: theirs})
    result.add(ours_named, unit, found[ours_named], theirs_named)
    result.add(theirs_named, unit, found[theirs_named])
    result.ratio(f"{what}: ÷ echo service", ours_named, theirs_named, 0.5, at_least=True)


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
