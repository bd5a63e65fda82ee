"""Lingering, asked of a logind that answers as the real one does (org.freedesktop.login1(5))."""

from __future__ import annotations

import os
import pwd
from collections.abc import AsyncIterator

import pytest

from cortexd.bus import Bus
from cortexd.errors import UnitFailed
from cortexd.systemd.logind import LogindClient
from tests.support.logind import FakeLogind
from tests.support.wait import aio_until


@pytest.fixture
async def logind(private_bus: str) -> AsyncIterator[FakeLogind]:
    logind = FakeLogind()
    bus = await logind.serve(private_bus)
    yield logind
    bus.close()


async def test_linger_is_asked_for_and_set(logind: FakeLogind, private_bus: str) -> None:
    client = LogindClient(private_bus)
    assert await client.linger() is False
    await client.set_linger(True)
    assert logind.asked == [[os.getuid(), True, False]]
    assert await client.linger() is True
    await client.set_linger(False)
    assert await client.linger() is False


async def test_user_that_logind_does_not_track_does_not_linger(logind: FakeLogind, private_bus: str) -> None:
    logind.tracked = False
    assert await LogindClient(private_bus).linger() is False


async def test_refusal_names_the_remedy(logind: FakeLogind, private_bus: str) -> None:
    logind.refusal = "Interactive authentication required."
    user = pwd.getpwuid(os.getuid()).pw_name
    with pytest.raises(UnitFailed, match=f"authentication required.*loginctl enable-linger {user}"):
        await LogindClient(private_bus).set_linger(True)


async def test_no_logind_on_the_bus(private_bus: str) -> None:
    client = LogindClient(private_bus)
    assert await client.linger() is None
    with pytest.raises(UnitFailed, match="loginctl disable-linger"):
        await client.set_linger(False)


async def test_no_system_bus() -> None:
    client = LogindClient("unix:path=/nonexistent/bus")
    assert await client.linger() is None
    with pytest.raises(UnitFailed, match="loginctl enable-linger"):
        await client.set_linger(True)


async def test_the_end_of_a_sleep_is_told(private_bus: str) -> None:
    """Its begin is not, nor what anybody but logind says."""
    told: list[bool] = []
    real, other = await Bus.connect(private_bus), await Bus.connect(private_bus)
    assert await real.request_name("org.freedesktop.login1")
    client = LogindClient(private_bus)
    await client.listen(lambda: told.append(True))
    sleep = ("/org/freedesktop/login1", "org.freedesktop.login1.Manager", "PrepareForSleep", "b")
    other.emit(*sleep, [False])
    await other.call("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetId")
    for starts in (True, False, True, False):
        real.emit(*sleep, [starts])
    await aio_until(lambda: len(told) >= 2, "two resumes")
    assert len(told) == 2
    for bus in (client, real, other):
        bus.close()


async def test_without_a_system_bus_nobody_tells_of_sleep() -> None:
    client = LogindClient("unix:path=/nonexistent/bus")
    await client.listen(lambda: None)
    client.close()
