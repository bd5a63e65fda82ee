"""Queries, jobs and saved logs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cortexd.errors import (
    Busy,
    JobFailed,
    JobTimeout,
    NoSuchModel,
)
from cortexd.jobs import JobState, JobTable
from cortexd.names import unit_name
from cortexd.systemd.fake import FakeSystemd
from tests.support.house import ME, House


@pytest.mark.parametrize("name", ["none", "", "a\0b", "*"])
async def test_a_model_that_is_not_there(house: House, name: str) -> None:
    for work in (
        lambda: house.start(name), lambda: house.stop(name), lambda: house.restart(name), lambda: house.unregister(name),
        lambda: house.manager.set(name, {"port": "1"}, ME),
        lambda: house.manager.kill(name, "TERM", "all", ME),
        lambda: house.manager.check_health(name),
    ):  # fmt: skip
        with pytest.raises(NoSuchModel, match="'cortexctl list' shows those that are"):
            await work()  # type: ignore[operator]
    assert await house.events(name) == []


async def test_which_models(house: House) -> None:
    for name in ("b1", "a1", "a2"):
        await house.register(name)
    match = house.manager.match
    assert match([]) == ["a1", "a2", "b1"] and match(["a*"]) == ["a1", "a2"] and match(["b1", "a1"]) == ["a1", "b1"]
    assert match(["?1"]) == ["a1", "b1"] and match(["[c-z]*"]) == [] and match(["A*"]) == []
    with pytest.raises(NoSuchModel, match="'c'"):
        match(["a*", "c"])


async def test_usage_is_asked_of_what_runs(house: House) -> None:
    from cortexd.systemd.protocol import UnitUsage

    unit = await house.running("a")
    await house.register("b")
    house.systemd.usages[unit] = UnitUsage(memory=7, cpu_nsec=8, tasks=9)
    assert await house.manager.usage(["a", "b"]) == {"a": UnitUsage(7, 8, 9), "b": UnitUsage()}


async def test_jobs() -> None:
    table = JobTable()
    gate = asyncio.Event()

    async def wait(job: Any) -> None:
        await gate.wait()
        job.warnings.append("w")

    async def broken(job: Any) -> None:
        raise RuntimeError("a secret")

    job = table.spawn("stop", "a", wait)
    assert table.running() == [job]
    with pytest.raises(Busy, match="a stop cannot be cancelled"):
        await job.cancel(ME)
    with pytest.raises(JobTimeout, match=r"the stop of a goes on after 0\.01 s; 'cortexctl status a'"):
        await job.wait(0.01)
    assert job.state is JobState.RUNNING
    gate.set()
    assert await asyncio.gather(job.wait(), job.wait()) == [["w"], ["w"]] == [await job.wait(0), await job.wait(5)]
    assert table.running() == []
    failed = table.spawn("start", "a", broken)
    with pytest.raises(JobFailed, match=r"^internal error; the daemon's log has the details$"):
        await failed.wait()
    await table.close()


def test_the_fake_is_a_systemd() -> None:
    from cortexd.systemd.protocol import Systemd

    fake: Systemd = FakeSystemd(Path("/nonexistent"))
    assert unit_name("a") not in fake.known_units()
