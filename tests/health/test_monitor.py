"""When the loop probes, what it takes along, and what it reports."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from cortexd.health.monitor import Monitor, Watched
from cortexd.health.policy import Decision, EngineCheck, HealthState, Outcome, Probe, Verdict
from cortexd.health.probe import Prober, Server
from cortexd.model import HealthPolicy
from tests.health.clock import Clock

OK = Probe(outcome=Outcome.OK)
BAD = Probe(outcome=Outcome.REFUSED, reason="no connection: refused")


class Scripted(Prober):
    """Answers from a script, after a while, and notes when it was asked."""

    def __init__(self, *script: Probe, takes: float = 0) -> None:
        self.script, self.takes, self.asked = [*script], takes, []  # type: tuple[list[Probe], float, list[tuple[float, str]]]

    async def probe(self, server: Server, timeout: float) -> Probe:
        self.asked.append((asyncio.get_running_loop().time(), server.url))
        await asyncio.sleep(self.takes)
        return self.script.pop(0) if self.script else OK

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.asked]


class Reports:
    """What the loop reported."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.all: list[tuple[str, HealthState, Decision]] = []

    async def __call__(self, name: str, before: HealthState, verdict: Verdict) -> None:
        self.all.append((name, verdict.state, verdict.decision))
        if self.fails:
            raise RuntimeError("a bug")


POLICY = HealthPolicy(endpoint="/health", interval=30, timeout=10)


def watched(name: str = "a", run: str = "r1", policy: HealthPolicy = POLICY, grace: float = 0) -> Watched:
    return watched_by(lambda: policy, name, run, grace)


def watched_by(policy: Callable[[], HealthPolicy], name: str = "a", run: str = "r1", grace: float = 0) -> Watched:
    async def server() -> Server:
        return Server(f"http://{name}/", "health")

    async def cpu() -> int | None:
        return None

    return Watched(name=name, run=run, current=lambda: run, policy=policy, server=server, cpu=cpu, grace=grace)


def in_fast_time(story: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine in a loop whose clock does not wait."""
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(story())  # type: ignore[arg-type]


def gaps(times: list[float]) -> list[float]:
    return [round(b - a, 3) for a, b in itertools.pairwise(times)]


@pytest.mark.parametrize(("takes", "gap"), [(0, 30), (9, 30), (29.5, 30), (40, 40)])
def test_probes_come_every_interval_start_to_start_and_never_two_at_once(takes: float, gap: float) -> None:
    async def story() -> None:
        prober = Scripted(takes=takes)
        monitor = Monitor(prober, Reports())
        monitor.watch(watched())
        await asyncio.sleep(300)
        await monitor.close()
        found = gaps(prober.times)
        assert min(found) >= min(takes, gap * 0.9)  # at first on the way into the model's own phase
        assert len(found) >= 6 and set(found[-1:] if takes == 29.5 else found[1:]) == {gap}

    in_fast_time(story)


def test_models_started_together_are_probed_at_once_and_then_apart() -> None:
    async def story() -> None:
        prober = Scripted()
        monitor = Monitor(prober, Reports())
        for number in range(100):
            monitor.watch(watched(f"model-{number}"))
        await asyncio.sleep(0.01)
        assert len(prober.asked) == 100
        await asyncio.sleep(30)
        later = sorted(prober.times)[100:]
        assert len(later) == 100
        assert max(gaps(later)) < 5 and later[0] < 1005 and later[-1] > 1025
        await monitor.close()

        again = Scripted()
        monitor = Monitor(again, Reports())
        monitor.watch(watched("model-7"))
        await asyncio.sleep(31)
        await monitor.close()
        of_7 = [at for at, url in prober.asked if url == "http://model-7/"]
        assert gaps(again.times) == gaps(of_7)  # the phase is the name's

    in_fast_time(story)


def test_the_first_probe_waits_where_nothing_told_readiness() -> None:
    async def story() -> None:
        prober = Scripted()
        monitor = Monitor(prober, Reports())
        monitor.watch(watched(grace=60))
        await asyncio.sleep(59.9)
        assert prober.asked == []
        await asyncio.sleep(0.2)
        assert prober.times == [1060]
        await monitor.close()

    in_fast_time(story)


def test_what_its_unit_signals_meanwhile_does_not_shorten_that_wait() -> None:
    """Every change of a unit, its status text too, comes as another call."""

    async def story() -> None:
        prober = Scripted()
        monitor = Monitor(prober, Reports())
        for _ in range(59):
            monitor.watch(watched(policy=replace(POLICY, interval=5), grace=60))
            await asyncio.sleep(1)
        assert prober.asked == []
        await asyncio.sleep(2)
        assert prober.times == [1060]
        await monitor.close()

    in_fast_time(story)


def test_failures_are_counted_and_reported_in_order() -> None:
    async def story() -> None:
        reports = Reports()
        monitor = Monitor(Scripted(BAD, OK, BAD, BAD, BAD, BAD, OK), reports)
        monitor.watch(watched(policy=replace(POLICY, max_failures=3)))
        await asyncio.sleep(30 * 6 + 29)
        await monitor.close()
        assert [after.failures for _, after, _ in reports.all][:7] == [1, 0, 1, 2, 3, 4, 0]
        assert [n for n, (_, _, decision) in enumerate(reports.all) if decision is Decision.RESTART] == [4, 5]
        assert {after.run for _, after, _ in reports.all} == {"r1"}

    in_fast_time(story)


def test_a_new_run_begins_anew_and_the_same_run_goes_on() -> None:
    async def story() -> None:
        reports, prober = Reports(), Scripted(*[BAD] * 6)
        monitor = Monitor(prober, reports)
        monitor.watch(watched(run="r1"))
        await asyncio.sleep(40)
        monitor.watch(watched(run="r1"))  # nothing new
        await asyncio.sleep(20)
        monitor.watch(watched(run="r2"))
        await asyncio.sleep(0.1)
        seen = [(after.run, after.failures) for _, after, _ in reports.all]
        assert seen == [("r1", 1), ("r1", 2), ("r1", 3), ("r2", 1)]
        monitor.forget("a")
        monitor.forget("a")
        asked = len(prober.asked)
        await asyncio.sleep(300)
        assert len(prober.asked) == asked
        await monitor.close()

    in_fast_time(story)


def test_forgetting_ends_a_probe_under_way() -> None:
    async def story() -> None:
        reports, prober = Reports(), Scripted(BAD, takes=1000)
        monitor = Monitor(prober, reports)
        monitor.watch(watched())
        await asyncio.sleep(1)
        assert len(prober.asked) == 1
        monitor.forget("a")
        await asyncio.sleep(2000)
        assert reports.all == [] and len(asyncio.all_tasks()) == 1
        await monitor.close()

    in_fast_time(story)


def test_changed_settings_count_at_once() -> None:
    async def story() -> None:
        policy = replace(POLICY, interval=1000)
        prober = Scripted()
        monitor = Monitor(prober, Reports())
        model = watched_by(lambda: policy)
        monitor.watch(model)
        await asyncio.sleep(1500)
        asked = len(prober.asked)
        policy = replace(POLICY, interval=5)
        monitor.watch(model)
        await asyncio.sleep(60)
        shorter = prober.times[asked:]
        assert 11 <= len(shorter) <= 12 and set(gaps(shorter)) == {5}
        policy = replace(POLICY, interval=1000)
        monitor.watch(model)
        await asyncio.sleep(2000)
        assert gaps(prober.times)[-1] == 1000  # the one that was due came, and then the longer pause
        await monitor.close()

    in_fast_time(story)


def test_a_report_that_fails_does_not_end_the_watching(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        reports = Reports(fails=True)
        monitor = Monitor(Scripted(), reports)
        monitor.watch(watched())
        await asyncio.sleep(90)
        await monitor.close()
        assert len(reports.all) >= 2

    in_fast_time(story)
    assert "a round of probes of a could not be handled" in caplog.text


def test_a_run_that_is_ended_by_its_own_report() -> None:
    """Killing a run changes its unit, and that ends the watching from within the report."""

    async def story() -> None:
        told: list[Decision] = []

        async def report(name: str, before: HealthState, verdict: Verdict) -> None:
            if verdict.decision is Decision.RESTART:
                monitor.forget(name)
            told.append(verdict.decision)

        monitor = Monitor(Scripted(BAD, BAD), report)
        monitor.watch(watched(policy=replace(POLICY, max_failures=2)))
        await asyncio.sleep(300)
        assert told == [Decision.NOTHING, Decision.RESTART]
        await monitor.close()

    in_fast_time(story)


def test_what_fails_while_the_machine_sleeps_does_not_count() -> None:
    """Told by logind in the middle of a round, or found in the clocks."""

    async def story() -> None:
        slept = 0.0
        prober, reports = Scripted(*[BAD] * 100, takes=5), Reports()
        monitor = Monitor(prober, reports, lambda: slept)
        monitor.watch(watched(policy=replace(POLICY, max_failures=100)))
        await asyncio.sleep(62)  # the third round is under way, or the fourth
        before = reports.all[-1][1].failures
        assert before >= 2
        await asyncio.sleep(30 - (asyncio.get_running_loop().time() - prober.times[-1]) + 1)
        monitor.resumed()
        await asyncio.sleep(5)
        assert reports.all[-1][1].failures == 0
        await asyncio.sleep(60)
        assert reports.all[-1][1].failures == 2
        slept = 3600.0
        await asyncio.sleep(30)
        assert reports.all[-1][1].failures == 0
        assert [past.meaning for past in reports.all[-1][1].history].count("void") == 2
        await monitor.close()

    in_fast_time(story)


def test_hung_servers_do_not_use_up_the_time_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """More hang than are probed at a time: a healthy one has to wait, but its own time begins with its probe, and what
    it waited is no gap."""
    monkeypatch.setattr("cortexd.health.monitor.CONCURRENT", 2)

    async def story() -> None:
        reports = Reports()
        monitor = Monitor(Scripted(*[BAD] * 1000, takes=10), reports)
        for number in range(20):
            monitor.watch(watched(f"model-{number}"))
        await asyncio.sleep(1000)
        await monitor.close()
        counts = [after.failures for name, after, _ in reports.all if name == "model-3"]
        assert counts == list(range(1, len(counts) + 1)) and 8 <= len(counts) <= 11

    in_fast_time(story)


def test_a_run_that_is_gone_is_not_judged() -> None:
    async def story() -> None:
        current = "r1"
        reports = Reports()
        monitor = Monitor(Scripted(*[BAD] * 100), reports)
        monitor.watch(replace(watched(), current=lambda: current))
        await asyncio.sleep(50)
        current = ""
        failures = reports.all[-1][1].failures
        await asyncio.sleep(300)
        assert {(after.failures, decision) for _, after, decision in reports.all[2:]} == {(failures, Decision.NOTHING)}
        await monitor.close()

    in_fast_time(story)


@pytest.mark.parametrize(("ready", "due"), [(None, 300), (0, 0), (900, 200)])
def test_the_engine_is_asked_for_by_the_age_of_the_run_and_not_of_its_watcher(
    ready: float | None, due: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that is restarted every four minutes would else never ask. It takes over at 1000 s of the clock."""
    asked: list[float] = []

    async def check(prober: Prober, server: Server, timeout: float, work: float | None) -> EngineCheck:
        asked.append(asyncio.get_running_loop().time() - 1000)
        return EngineCheck(probe=OK)

    monkeypatch.setattr("cortexd.health.monitor.check_engine", check)

    async def story() -> None:
        await asyncio.sleep(1000 - asyncio.get_running_loop().time())
        policy = replace(POLICY, probe="engine")
        monitor = Monitor(Scripted(), Reports())
        monitor.watch(replace(watched(policy=policy), ready=ready))
        await asyncio.sleep(400)
        await monitor.close()

    in_fast_time(story)
    assert len(asked) >= 1 and due <= asked[0] <= due + POLICY.interval
