"""What happened to runs while no cortexd was there, as the journal tells it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cortexd import journal, missed
from cortexd.events import Priority
from cortexd.journal import What
from cortexd.states import State
from tests.manager.test_restarts import crash_loop, fail_again
from tests.support.house import House

IDS = {what: number for number, what in journal._MESSAGES.items()}


class Journal:
    """Answers what the manager said."""

    def __init__(self, program: Path, unit: str) -> None:
        self.program, self.unit, self.lines = program, unit, list[str]()

    def say(
        self,
        what: What,
        run: str,
        at: float,
        result: str = "signal",
        unit: str = "",
        *,
        jump: float = 0,
        job: str = "stop",
    ) -> None:
        """`jump`: how far the wall clock has been set by then; what came before it is told without."""
        monotonic = at - time.time() + time.monotonic()
        at += jump
        line = {
            "MESSAGE_ID": IDS[what], "USER_UNIT": unit or self.unit, "USER_INVOCATION_ID": run,
            "__REALTIME_TIMESTAMP": str(int(at * 1e6)), "__MONOTONIC_TIMESTAMP": str(int(monotonic * 1e6)), "JOB_TYPE": job,
        }  # fmt: skip
        if what is What.FAILED:
            line["UNIT_RESULT"] = result
        self.lines.append(json.dumps(line))
        answer = self.program.with_name("answer")
        answer.write_text("\n".join(self.lines) + "\n")
        self.program.write_text(
            f'#!/bin/sh\ncase "$*" in *_SYSTEMD_USER_UNIT=init.scope*) cat {answer};; *UNIT_RESULT*) echo failed;; esac\n'
        )

    def run(self, run: str, began: float, ready: float, failed: float, *, again: bool = True) -> None:
        self.say(What.BEGAN, run, began)
        self.say(What.READY, run, ready)
        self.say(What.FAILED, run, failed)
        if again:
            self.say(What.AGAIN, run, failed + 1)


def now_runs(house: House, unit: str, n_restarts: int) -> None:
    house.systemd._units.run(unit)
    house.systemd.change(unit, active_state="active", sub_state="running", n_restarts=n_restarts)


async def test_runs_that_were_stable_unseen_are_no_row_of_failures(house: House, journalctl: Path) -> None:
    """Two crashes a day apart, then one more."""
    unit = await crash_loop(house, 1)
    told, day, now = Journal(journalctl, unit), 86400, time.time()
    house.systemd.finish(unit)
    last = house.unit().invocation_id
    await house.until_event("ready")
    await house.close()
    told.say(What.FAILED, last, now + day)
    told.say(What.AGAIN, last, now + day + 1)
    told.run("e" * 32, now + day + 2, now + day + 3, now + 2 * day)
    now_runs(house, unit, 3)
    await house.open()
    unseen = [e for e in await house.events() if e.invocation_id == "e" * 32]
    assert [(e.kind, e.time) for e in unseen] == [
        ("run", int((now + day + 2) * 1e6)), ("ready", int((now + day + 3) * 1e6)), ("stable", int((now + 2 * day) * 1e6)), ("ended", int((now + 2 * day) * 1e6)),
    ]  # fmt: skip
    await fail_again(house, unit, 1)
    assert house.state() is State.RESTARTING


async def test_runs_that_failed_unseen_count(house: House, journalctl: Path) -> None:
    unit = await crash_loop(house, 1)
    told, now = Journal(journalctl, unit), time.time() + 1
    await house.close()
    told.run("e" * 32, now, now + 1, now + 2)
    now_runs(house, unit, 2)
    await house.open()
    await fail_again(house, unit, 1)
    await house.until(State.FAILED)


async def test_a_persons_run_in_that_time_clears_it(house: House, journalctl: Path) -> None:
    unit = await crash_loop(house, 2)
    told, now = Journal(journalctl, unit), time.time() + 1
    await house.close()
    told.run("e" * 32, now, now + 1, now + 2)
    now_runs(house, unit, 1)
    await house.open()
    assert house.state() is State.READY


async def test_ends_that_were_seen_are_not_told_again(house: House, journalctl: Path) -> None:
    """Another model's last word is older; a run that cortexctl restarted leaves no end at all."""
    began = time.time()
    unit, other = await house.running("a"), await house.running("b")
    seen = house.unit("a").invocation_id
    await (await house.restart("a")).wait()
    told = Journal(journalctl, unit)
    last = {name: house.unit(name).invocation_id for name in ("a", "b")}
    await house.events("a")
    await house.close()
    told.say(What.FAILED, seen, began + 0.000001)
    later = time.time() + 1
    for name, of in (("a", unit), ("b", other)):
        told.say(What.FAILED, last[name], later, unit=of)
        now_runs(house, of, 1)
    await house.open()
    for name in ("a", "b"):
        assert [e.invocation_id for e in await house.events(name) if e.kind == "ended"] == [last[name]]


async def test_a_run_that_was_to_be_restarted_is_no_failure(house: House, journalctl: Path) -> None:
    unit = await house.register()
    house.systemd.behave(unit, start="hang", stop="hang")
    await house.start()
    run = house.unit().invocation_id
    await house.restart()
    await house.events()
    await house.close()
    told = Journal(journalctl, unit)
    told.say(What.FAILED, run, time.time() + 1, "timeout")
    now_runs(house, unit, 0)
    await house.open()
    assert "ended" not in await house.kinds()


async def ends(house: House) -> list[tuple[str, str]]:
    return [(e.invocation_id, e.message) for e in await house.events() if e.kind == "ended"]


async def test_what_was_restarted_before_a_person_started_it_is_told(house: House, journalctl: Path) -> None:
    """systemd's count begins anew with that start."""
    unit = await house.running()
    run, now = house.unit().invocation_id, time.time() + 1
    await house.events()
    await house.close()
    told = Journal(journalctl, unit)
    told.say(What.FAILED, run, now)
    told.say(What.AGAIN, run, now)
    told.run("e" * 32, now + 1, now + 2, now + 3)
    now_runs(house, unit, 0)
    await house.open()
    restarted = "restarted while unobserved: it ended with the result 'signal'"
    assert await ends(house) == [(run, restarted), ("e" * 32, restarted)]
    assert [e.details.get("restart") for e in await house.events() if e.kind == "run"] == [False, True, False]
    assert house.manager.view("a").model.budget.failed == 0


@pytest.mark.parametrize("lost", [False, True])
async def test_a_flood_that_leaves_failures_alone_hides_no_run(house: House, journalctl: Path, lost: bool) -> None:
    """journald drops what is of no importance first: that a run begins, is ready, is started again. `lost`: one failure, too."""
    unit = await house.running()
    run, now = house.unit().invocation_id, time.time() + 1
    await house.events()
    await house.close()
    told = Journal(journalctl, unit)
    told.say(What.FAILED, run, now)
    told.say(What.FAILED, "e" * 32, now + 2)
    told.say(What.FAILED, "d" * 32, now + 4)
    now_runs(house, unit, 3 + lost)
    await house.open()
    restarted = "restarted while unobserved: it ended with the result 'signal'"
    rest = [("", "restarted while unobserved: once, and the journal does not tell why")]
    assert await ends(house) == [(run, restarted), ("e" * 32, restarted), ("d" * 32, restarted), *rest * lost]
    assert house.manager.view("a").model.budget.failed == 3 + lost
    assert (await house.kinds()).count("run") == 4 and house.state() is State.READY
    await house.close()
    await house.open()
    assert len(await ends(house)) == 3 + lost, "once"


async def test_runs_of_which_only_the_end_is_known_clear_nothing(house: House, journalctl: Path) -> None:
    """Nobody knows who began them."""
    unit = await crash_loop(house, 1, max_restarts=10)
    now = time.time() + 1
    await house.events()
    await house.close()
    told = Journal(journalctl, unit)
    told.say(What.FAILED, "e" * 32, now)
    told.say(What.FAILED, "d" * 32, now + 1)
    house.systemd.change(unit, n_restarts=0)
    house.systemd.finish(unit)
    await house.open()
    assert house.manager.view("a").model.budget.failed == 3


async def test_a_line_that_journald_got_late_begins_no_run_anew(house: House, journalctl: Path) -> None:
    """Of a run whose end was seen and told."""
    unit = await crash_loop(house, 1, max_restarts=10)
    seen = house.unit().invocation_id
    house.systemd.finish(unit)
    await house.until_event("ready")
    last, now = house.unit().invocation_id, time.time() + 1
    await house.events()
    await house.close()
    told = Journal(journalctl, unit)
    for run in (seen, last):
        told.say(What.FAILED, run, now)
        told.say(What.AGAIN, run, now)
    now_runs(house, unit, 2)
    await house.open()
    assert [run for run, _ in await ends(house)] == [seen, last]
    assert (await house.kinds()).count("run") == 3


async def test_what_failed_to_stop_when_it_was_to_has_not_failed_by_itself(house: House, journalctl: Path) -> None:
    """systemctl stop, then start; systemd says both that it failed and that it is stopped."""
    unit = await house.running()
    run, now = house.unit().invocation_id, time.time() + 1
    await house.events()
    await house.close()
    told = Journal(journalctl, unit)
    for what in (What.STOPPING, What.FAILED, What.STOPPED):
        told.say(what, run, now, "timeout")
    now_runs(house, unit, 0)
    await house.open()
    assert (await house.kinds())[-3:] == ["stopped", "run", "ready"] and await ends(house) == []


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", "1", "null", '{"MESSAGE_ID": ["x"]}', json.dumps({"MESSAGE_ID": IDS[What.FAILED]}),
        json.dumps(
            {"MESSAGE_ID": IDS[What.FAILED], "USER_UNIT": "u", "USER_INVOCATION_ID": "r", "__REALTIME_TIMESTAMP": "x"}
        ),
    ],
)  # fmt: skip
async def test_what_is_no_entry_is_passed_over(journalctl: Path, line: str) -> None:
    told = Journal(journalctl, "u")
    told.lines.append(line)
    told.say(What.FAILED, "r", 1, "\x1b[31mforged")
    (entry,) = await journal.runs(0)
    assert (entry.run, entry.what, entry.result) == ("r", What.FAILED, "")


async def test_a_journal_that_does_not_answer_is_told(
    journalctl: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal, "_DEADLINE", 0.1)
    journalctl.write_text("#!/bin/sh\nexec sleep 60\n")
    assert await journal.runs(0) == []
    assert "the journal cannot be read: journalctl did not end within 0.1 s" in caplog.text


async def test_no_more_is_read_of_the_journal_than_is_bounded(
    journalctl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_MAX_READ", 1000)
    journalctl.write_text("#!/bin/sh\nexec yes\n")
    assert len(await journal._run([])) == 1000


async def test_a_run_that_is_over_before_it_could_be_taken_over_is_not(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking the journal gives others their turn."""
    unit = await house.running()
    await house.events()
    await house.close()
    now_runs(house, unit, 1)
    missed_runs = missed.missed_runs

    async def slowly(*asked: Any) -> Any:
        now_runs(house, unit, 2)
        return await missed_runs(*asked)

    monkeypatch.setattr(missed, "missed_runs", slowly)
    await house.open()
    last = [e.invocation_id for e in await house.events() if e.kind == "run"][-1]
    assert last == house.unit().invocation_id == house.manager.view("a").model.serving.run


async def test_a_restart_of_which_only_the_outcome_was_seen_is_an_end_and_counts(house: House) -> None:
    unit = await house.running(max_restarts=1, Restart="always")
    run = house.unit().invocation_id
    house.systemd.change(
        unit, active_state="active", sub_state="running", invocation_id="e" * 32, n_restarts=house.unit().n_restarts + 1
    )
    ended = await house.until_event("ended")
    assert (ended.invocation_id, ended.priority) == (run, Priority.WARNING)
    assert (await house.kinds())[-1:] != ["ended"], "the next run comes after it"
    await house.until(State.FAILED)


@pytest.mark.parametrize(("restarts", "times"), [(2, "once"), (4, "3 times")])
async def test_restarts_are_told_also_where_the_journal_cannot_be_read(
    house: House, journalctl: Path, restarts: int, times: str
) -> None:
    unit = await crash_loop(house, 1)
    house.systemd.finish(unit)
    run = house.unit().invocation_id
    await house.until_event("ready")
    await house.close()
    journalctl.write_text("#!/bin/sh\nexit 1\n")
    now_runs(house, unit, restarts)
    await house.open()
    (told,) = [e for e in await house.events() if e.message.startswith("restarted while unobserved")]
    assert told.message == f"restarted while unobserved: {times}, and the journal does not tell why"
    assert (told.kind, told.priority, told.invocation_id) == ("ended", Priority.WARNING, run)
    assert house.manager.view("a").model.budget.failed == 2
    await house.close()
    await house.open()
    assert len([e for e in await house.events() if e.kind == "ended"]) == 2, "once"


async def test_no_restart_is_told_where_a_run_ended_that_was_seen(house: House, journalctl: Path) -> None:
    unit = await crash_loop(house, 1)
    await house.events()
    await house.close()
    journalctl.write_text("#!/bin/sh\nexit 1\n")
    now_runs(house, unit, 1)
    await house.open()
    assert (await house.kinds())[-3:] == ["ended", "run", "ready"]


async def test_a_first_run_that_began_and_ended_unseen_is_told(house: House, journalctl: Path) -> None:
    """systemctl start while no cortexd was there, of a model that it had never seen run."""
    unit = await house.register()
    await house.events()
    await house.close()
    now = time.time() + 1
    told = Journal(journalctl, unit)
    told.run("e" * 32, now, now + 1, now + 2)
    now_runs(house, unit, 1)
    await house.open()
    assert (await house.kinds())[-5:] == ["run", "ready", "ended", "run", "ready"]
    assert house.manager.view("a").model.budget.failed == 1


async def test_a_run_that_hung_until_it_was_killed_was_not_stable(house: House, journalctl: Path) -> None:
    """And the daemon that killed it died with it."""
    unit = await crash_loop(house, 1, max_restarts=10)
    house.systemd.finish(unit)
    await house.until_event("ready")
    run, now = house.unit().invocation_id, time.time() + 1
    house.manager._observer.recorder.tell(house.manager.view("a").model, "health-restart", "hung")
    await house.events()
    await house.close()
    told = Journal(journalctl, unit)
    told.say(What.FAILED, run, now + 671)
    told.say(What.AGAIN, run, now + 672)
    now_runs(house, unit, 2)
    await house.open()
    assert "stable" not in await house.kinds() and house.manager.view("a").model.budget.failed == 2


@pytest.mark.parametrize("jump", [86400, -86400])
async def test_clocks_that_are_set_make_no_unseen_run_stable(house: House, journalctl: Path, jump: float) -> None:
    """Nor one unstable that was not. What is told of a time before what is known is passed over."""
    unit = await house.running(max_restarts=3, Restart="always")
    house.systemd.behave(unit, restart=True)
    run, now = house.unit().invocation_id, time.time()
    await house.events()
    await house.close()
    told = Journal(journalctl, unit)
    told.say(What.FAILED, run, now + 2, jump=max(jump, 0))
    told.say(What.AGAIN, run, now + 2, jump=max(jump, 0))
    told.say(What.BEGAN, "e" * 32, now + 3, jump=max(jump, 0))
    told.say(What.READY, "e" * 32, now + 4, jump=max(jump, 0))
    told.say(What.FAILED, "e" * 32, now + 1000, jump=jump if jump > 0 else -990)
    now_runs(house, unit, 2)
    await house.open()
    assert (await house.kinds()).count("stable") == 1
    assert house.manager.view("a").model.budget.failed == 1


async def stopped_unseen(house: House, unit: str, told: Journal, at: float, *, job: str = "stop") -> None:
    """With systemctl, while no cortexd is there; systemd forgets the unit then."""
    run = house.unit().invocation_id
    await house.close()
    told.say(What.STOPPED, run, at, job=job)
    house.systemd.change(unit, active_state="inactive", sub_state="dead", main_pid=0, invocation_id="")
    await house.open()


async def test_a_stop_past_cortexd_while_it_was_away_is_told(house: House, journalctl: Path) -> None:
    unit = await house.running()
    run, at = house.unit().invocation_id, time.time() + 1
    await house.events()
    await stopped_unseen(house, unit, Journal(journalctl, unit), at)
    told = (await house.events())[-1]
    assert (told.kind, told.invocation_id, told.time, told.priority) == ("stopped", run, int(at * 1e6), Priority.INFO)
    assert told.message == "stopped while cortexd was away: with systemctl, or at the end of your session"
    assert house.state() is State.STOPPED
    await house.close()
    await house.open()
    assert (await house.kinds()).count("stopped") == 1


@pytest.mark.parametrize("what", ["restart", "of the boot before"])
async def test_what_is_no_such_stop(house: House, journalctl: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    unit = await house.running()
    await house.events()
    at = time.time() + 1
    if what == "of the boot before":
        monkeypatch.setattr(missed, "boot_time", lambda: at + 1)
    await stopped_unseen(house, unit, Journal(journalctl, unit), at, job="restart" if what == "restart" else "stop")
    assert "stopped" not in await house.kinds()
