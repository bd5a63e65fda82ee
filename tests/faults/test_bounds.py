"""Nothing that clients, models or systemd send makes cortexd grow without end: over the bound it is Busy, or the oldest goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cortexd import catalog, jobs
from cortexd.api import server
from cortexd.api.objects import export
from cortexd.api.server import Server
from cortexd.bus import Bus, BusError
from cortexd.errors import Busy
from cortexd.jobs import Job, JobTable
from cortexd.names import BUS_NAME, JOB_INTERFACE, MANAGER_INTERFACE, ROOT_PATH
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
    bus = await Bus.connect(private_bus)
    exported = Server(bus, ROOT_PATH)
    export(bus, exported, house.manager)
    await bus.on_leave(exported.left)
    served = Served(house, exported, bus.unique_name, private_bus)
    yield served
    served.close()
    await exported.close()
    await house.close()
    bus.close()
    await aio_until(lambda: not bus._tasks, "the end of the connection")


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
