"""Enable, kill, reset and health on demand."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import pytest

from cortexd.api.describe import probe_values
from cortexd.errors import (
    Busy,
    InvalidConfig,
)
from cortexd.health.policy import Outcome, Probe
from cortexd.states import State
from tests.support.house import ME, House


async def test_enable_and_disable(house: House) -> None:
    await house.register()
    assert await house.manager.enable("a", ME, linger=False) == []
    assert house.unit().unit_file_state == "enabled"
    await house.manager.disable("a", ME)
    assert house.unit().unit_file_state == "disabled"
    assert [(e.kind, e.actor) for e in await house.events()][1:] == [("enable", "me[1]"), ("disable", "me[1]")]


@pytest.mark.parametrize(("lingers", "says"), [(False, "you do not linger"), (None, "logind does not say whether")])
async def test_enable_where_nobody_lingers(house: House, lingers: bool | None, says: str) -> None:
    await house.register()
    house.logind.lingers = lingers
    (warning,) = await house.manager.enable("a", ME, linger=False)
    assert says in warning and "loginctl enable-linger" in warning
    assert house.logind.asked == [] and house.unit().unit_file_state == "enabled"
    assert await house.manager.enable("a", ME, linger=True) == []
    assert house.logind.asked == [True]


@pytest.mark.parametrize(("text", "number"), [("TERM", 15), ("sigkill", 9), ("SIGUSR1", 10), ("2", 2), (" 9", 9)])
async def test_kill(house: House, text: str, number: int) -> None:
    unit = await house.running()
    await house.manager.kill("a", text, "main", ME)
    assert house.asked("KillUnit") == [("KillUnit", unit, "main", str(number))]
    event = next(e for e in await house.events() if e.kind == "kill")
    assert (event.message, event.actor) == (f"{signal.Signals(number).name} asked for, to main", "me[1]")


@pytest.mark.parametrize(
    ("signal", "whom", "error", "says"),
    [
        ("", "all", InvalidConfig, "signal=''"),
        ("0", "all", InvalidConfig, "signal='0'"),
        ("99", "all", InvalidConfig, "signal='99'"),
        ("-9", "all", InvalidConfig, "signal='-9'"),
        ("SIG", "all", InvalidConfig, "signal='SIG'"),
        ("TERM", "everybody", InvalidConfig, "whom='everybody'"),
    ],
)
async def test_a_kill_that_makes_no_sense(house: House, signal: str, whom: str, error: Any, says: str) -> None:
    await house.running()
    with pytest.raises(error, match=says):
        await house.manager.kill("a", signal, whom, ME)
    assert house.asked("KillUnit") == [] and "kill" not in await house.kinds()


async def test_a_kill_says_who_it_was(house: House) -> None:
    await house.running()
    await house.manager.kill("a", "KILL", "all", ME)
    assert (await house.until_event("failed")).message == "the server was killed by SIGKILL (cortexctl kill)"
    with pytest.raises(Busy, match="is not running"):
        await house.manager.kill("a", "KILL", "all", ME)


async def test_reset_failed(house: House) -> None:
    unit = await house.running()
    house.systemd.crash(unit)
    await house.until_event("failed")
    await house.manager.reset_failed("a", ME)
    assert house.state() is State.STOPPED and (await house.kinds())[-1] == "reset-failed"
    assert [e.actor for e in await house.events() if e.kind == "reset-failed"] == ["me[1]"]


async def test_check_health(house: House) -> None:
    await house.register(port=18007, host="0.0.0.0")
    probe = await house.manager.check_health("a")  # whoever answers there is not this model
    assert (probe.outcome, probe.reason, house.prober.asked) == (Outcome.NOT_RUNNING, "it is stopped", [])
    await house.manager.set("a", {"health.enabled": "no"}, ME)
    await (await house.start()).wait()
    house.prober.outcome, house.prober.reason = Outcome.TIMEOUT, "no answer"
    probe = await house.manager.check_health("a")
    assert (probe.outcome, house.prober.asked) == (Outcome.TIMEOUT, ["http://127.0.0.1:18007/health"])
    assert house.manager.view("a").model.health.failures == 0  # asked for, it does not count


def told(house: House, probe: Probe) -> dict[str, Any]:
    """CheckHealth's answer for a probe that had this outcome."""
    return {key: variant.value for key, variant in probe_values(house.manager.view("a"), probe).items()}


WELL, LATE, DOWN = Probe(outcome=Outcome.OK), Probe(outcome=Outcome.TIMEOUT), Probe(outcome=Outcome.REFUSED)


async def test_what_a_probe_means_while_it_starts(house: House) -> None:
    unit = await house.register()
    house.systemd.change(unit, active_state="activating", sub_state="start", status_text="Loading")
    for probe in (WELL, LATE, DOWN):
        found = told(house, probe)
        assert (found["Health"], found["State"], found["StateReason"]) == ("unknown", "starting", "Loading")
        assert found["Next"] == "liveness probes begin once it is ready"
        assert found["StateChangeTimestamp"] == house.unit().state_change > 0


async def test_a_model_that_is_about_to_be_restarted_is_not_probed(house: House) -> None:
    """Its unit is activating, but whoever answers there is not this model."""
    unit = await house.register()
    house.systemd.change(unit, active_state="activating", sub_state="auto-restart")
    probe = await house.manager.check_health("a")
    assert (probe.outcome, probe.reason, house.prober.asked) == (Outcome.NOT_RUNNING, "it is restarting", [])
    found = told(house, probe)
    assert (found["Health"], found["State"]) == ("unknown", "restarting")
    assert "systemd starts it again" in found["StateReason"]


async def test_what_a_probe_means_while_it_runs(house: House) -> None:
    """Only a time-out is excused, and only where the liveness loop has excused the last one."""
    await house.running(health__interval_seconds=3600)
    model = house.manager.view("a").model
    assert [told(house, probe)["Health"] for probe in (WELL, LATE, DOWN)] == ["healthy", "failing", "failing"]
    why = "no answer, but it uses CPU time"
    model.health = replace(model.health, busy=True, reason=why)
    assert [told(house, probe)["Health"] for probe in (WELL, LATE, DOWN)] == ["healthy", "busy", "failing"]
    assert (told(house, LATE)["State"], told(house, LATE)["StateReason"]) == ("busy", why)
    model.health = replace(model.health, run="another")
    assert told(house, LATE)["Health"] == "failing"


@pytest.mark.parametrize(
    ("failures", "restart", "coming"),
    [
        (0, "always", "after 3 failed probes in a row it is restarted"),
        (1, "always", "after 2 more failed probes in a row it is restarted"),
        (2, "always", "after one more failed probe it is restarted"),
        (3, "always", "after one more failed probe it is restarted"),
        (0, "no", "after 3 failed probes in a row it counts as unhealthy, and is not restarted (Restart=no)"),
    ],
)
async def test_what_the_next_failures_lead_to(house: House, failures: int, restart: str, coming: str) -> None:
    await house.running(Restart=restart, health__interval_seconds=3600)
    model = house.manager.view("a").model
    model.health = replace(model.health, failures=failures)
    assert told(house, DOWN)["Next"] == coming


async def test_nothing_comes_where_nobody_probes(house: House) -> None:
    await house.running(health__enabled="no")
    assert told(house, WELL)["Next"] == "nothing: health checks are off"
