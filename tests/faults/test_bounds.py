"""Nothing that clients, models or systemd send makes cortexd grow without end: over the bound it is Busy, or the oldest goes."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cortexd import bounded, bus, catalog, jobs, runlog, secrets
from cortexd.api import server
from cortexd.api.objects import export
from cortexd.api.server import Server
from cortexd.bus import Bus, BusError
from cortexd.errors import Busy
from cortexd.events import MAX_TEXT, Event
from cortexd.jobs import Job, JobTable
from cortexd.names import BUS_NAME, JOB_INTERFACE, MANAGER_INTERFACE, MAX_MODELS, ROOT_PATH
from cortexd.store import writer
from cortexd.store.database import EVENTS_IN_ALL, EVENTS_PER_MODEL
from cortexd.systemd.jobs import MEMORY
from tests.support.house import House
from tests.support.wait import aio_until


class Served:
    """A Manager on a bus of the test's own, with a model that does not come to the end of its start."""

    def __init__(self, house: House, server: Server, destination: str, address: str) -> None:
        self.house, self.server, self.destination, self.address = house, server, destination, address
        self._clients: list[Bus] = []

    async def client(self) -> Bus:
        self._clients.append(await Bus.connect(self.address))
        return self._clients[-1]

    async def hanging(self, client: Bus) -> str:
        """A job's path."""
        unit = await self.house.register()
        self.house.systemd.behave(unit, start="hang")
        (path,) = await client.call(self.destination, ROOT_PATH, MANAGER_INTERFACE, "StartModel", "s", ["a"])
        return str(path)

    async def jobs(self, client: Bus) -> list[Any]:
        return await client.call(self.destination, ROOT_PATH, MANAGER_INTERFACE, "ListJobs")

    def waits(self, client: Bus, path: str, number: int) -> list[asyncio.Task[list[Any]]]:
        def wait() -> Coroutine[Any, Any, list[Any]]:
            return client.call(self.destination, path, JOB_INTERFACE, "Wait", "a{sv}", [{}], timeout=60)

        return [asyncio.create_task(wait()) for _ in range(number)]

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
async def served(tmp_path: Path, private_bus: str) -> AsyncIterator[Served]:
    house = House(tmp_path)
    await house.open()
    connection = await Bus.connect(private_bus)
    exported = Server(connection, ROOT_PATH)
    export(connection, exported, house.manager)
    await connection.on_leave(exported.left)
    served = Served(house, exported, connection.unique_name, private_bus)
    yield served
    served.close()
    await exported.close()
    await house.close()
    connection.close()
    await aio_until(lambda: not connection._tasks, "the end of the connection")


async def test_one_who_waits_for_too_much_keeps_nobody_else_waiting(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CALLS_OF_CLIENT", 50)
    greedy, other = await served.client(), await served.client()
    path = await served.hanging(greedy)
    waits = served.waits(greedy, path, 60)
    await aio_until(lambda: sum(wait.done() for wait in waits) == 10, "refusals of those over the bound")
    for wait in waits:
        if wait.done():
            assert isinstance(error := wait.exception(), BusError)
            assert (error.name, error.message) == (
                f"{BUS_NAME}.Error.Busy",
                "50 calls of yours are under way; wait until some are answered",
            )
    with pytest.raises(BusError, match="Busy"):
        await served.jobs(greedy)
    assert len((await served.jobs(other))[0]) == 1
    served.house.systemd.finish("cortex-a.service")
    await asyncio.gather(*waits, return_exceptions=True)
    assert await served.jobs(greedy) == [[]]
    await aio_until(lambda: not served.server._clients, "nobody")


async def test_who_leaves_waits_for_nothing_any_more(served: Served) -> None:
    leaver, other = await served.client(), await served.client()
    path = await served.hanging(leaver)
    for client in (leaver, other):
        for wait in served.waits(client, path, 20):
            wait.add_done_callback(lambda done: done.cancelled() or done.exception())
    await aio_until(lambda: len(served.server._tasks) == 40, "the waits")
    leaver.close()
    await aio_until(lambda: len(served.server._tasks) == 20, "the end of those that nobody waits for")
    assert list(served.server._clients) == [other.unique_name]
    assert len((await served.jobs(other))[0]) == 1, "the job goes on"


async def test_too_many_jobs_are_refused_and_the_oldest_that_ended_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_RUNNING", 5)
    monkeypatch.setattr(jobs, "MAX_ENDED", 3)
    table, gate, forgotten = JobTable(), asyncio.Event(), list[int]()
    table.on_forget = lambda job: forgotten.append(job.id)

    async def work(job: Job) -> None:
        await gate.wait()

    running = [table.spawn("start", f"m{n}", work) for n in range(5)]
    with pytest.raises(Busy, match="5 jobs are running"):
        table.spawn("start", "one-more", work)
    gate.set()
    await asyncio.gather(*(job.wait() for job in running))
    await aio_until(lambda: not table.running(), "their end")
    assert forgotten == [1, 2]
    assert [job.id for job in table._ended] == [3, 4, 5] == list(table._jobs)
    await table.close()


async def test_too_many_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(tmp_path)
    await house.open()
    monkeypatch.setattr(catalog, "MAX_MODELS", 2)
    await house.register("a")
    await house.register("b")
    with pytest.raises(Busy, match="2 models are registered, and no more are possible; unregister some"):
        await house.register("c")
    assert sorted(path.name for path in house.scope.unit_folder.glob("cortex-*")) == [
        "cortex-a.service",
        "cortex-b.service",
    ]
    await house.close()


async def test_what_an_event_says_is_cut_off(tmp_path: Path) -> None:
    house = House(tmp_path)
    await house.open()
    await house.register(env="A=" + "x" * 20_000)
    await house.store.add_event(
        Event(model="a", kind="told", message="m" * 100_000, details={"n": 1, "text": "t" * 100_000})
    )
    registered, told = await house.events()
    assert registered.details["env"] == "A=" + "x" * (MAX_TEXT - 3) + "…"
    assert (told.message, told.details["n"]) == ("m" * (MAX_TEXT - 1) + "…", 1) and len(
        told.details["text"]
    ) == MAX_TEXT
    await house.close()


async def test_threads_that_hang_are_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """More are a time-out at once, and room is there again when one of them has come back."""
    monkeypatch.setattr(bounded, "_running", threading.Semaphore(3))
    gate = threading.Event()
    hanging = [asyncio.create_task(bounded.in_thread(0.01, gate.wait)) for _ in range(3)]
    assert {type(end) for end in await asyncio.gather(*hanging, return_exceptions=True)} == {TimeoutError}
    with pytest.raises(TimeoutError):
        await bounded.in_thread(600, lambda: 1)
    gate.set()

    async def room() -> bool:
        with suppress(TimeoutError):
            return await bounded.in_thread(5, lambda: True)
        return False

    async with asyncio.timeout(10):
        while not await room():
            await asyncio.sleep(0.005)


def test_bounds_are_what_the_architecture_says() -> None:
    """Each is lowered in a test that would fail without it; these are the real ones."""
    text = (Path(catalog.__file__).parents[1] / "docs" / "architecture.md").read_text()
    table = text.partition("## Bounds")[2].partition("##")[0].replace("100 000", "100000")
    for bound in (
        server.MAX_CALLS, server.MAX_CALLS_OF_CLIENT, jobs.MAX_RUNNING, jobs.MAX_ENDED, writer.MAX_WAITING, writer._BATCH,
        MAX_MODELS, EVENTS_PER_MODEL, EVENTS_IN_ALL, bus.MAX_ERROR, bounded._MAX_THREADS, MEMORY, MAX_TEXT,
        runlog.MAX_BYTES >> 10, bus.MAX_REPLY >> 20, secrets._MAX_FILE >> 10, secrets.MAX_VALUE >> 10,
    ):  # fmt: skip
        assert re.search(rf"\b{bound}\b", table), bound
