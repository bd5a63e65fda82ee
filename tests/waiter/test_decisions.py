"""The wait's decisions, on a clock that takes no time."""

from __future__ import annotations

import errno
import itertools
import re
from collections.abc import Callable

import pytest

from cortexd.waiter.http import Pause, Server
from cortexd.waiter.signs import GROWTH, Reading
from cortexd.waiter.sockets import Listener, answers_to
from cortexd.waiter.waiting import REFUSED_FOR, Key, Waiter
from cortexd.waiter.watch import EXCUSE, GRACE, GaveUp, Watch

Answer = int | tuple[int, bytes] | OSError


class Script:
    """A wait without time: the clock moves by what is paused, and probes answer what the script says."""

    def __init__(self, probe: Callable[[float], Answer]) -> None:
        self.probe = probe
        self.time = 100.0
        self.pauses: list[float] = []
        self.sent: list[tuple[float, str]] = []
        self.probes = 0
        self.key = Key()
        self.keys: list[str] = []
        self.sockets: list[Listener] = []
        self.ends_at = float("inf")
        self.reading: Callable[[float], Reading] = lambda t: Reading()

    def ask(self, server: Server, path: str, timeout: float, pause: Pause, key: str) -> tuple[int, bytes]:
        self.probes += 1
        self.keys.append(key)
        found = self.probe(self.time - 100)
        if isinstance(found, OSError):
            raise found
        return found if isinstance(found, tuple) else (found, b"")

    def poll(self, seconds: float, fd: int, events: int) -> tuple[bool, bool]:
        """Pauses, as poll(2) on a pidfd does."""
        if seconds:
            self.pauses.append(seconds)
        self.time += seconds
        return self.time - 100 >= self.ends_at, False

    def run(
        self, timeout: float = 3600, stall: float = 3600, cgroup: int = 0, load: Callable[[], None] | None = None
    ) -> str:
        """The reason why it gave up, empty if ready."""
        self.watch = Watch(
            self.poll, lambda now: self.reading(now - 100), lambda text: self.sent.append((self.time - 100, text)),
            timeout=timeout, stall=stall, now=lambda: self.time,
        )  # fmt: skip
        waiter = Waiter(
            self.watch,
            Server("127.0.0.1", 8000),
            "/health",
            cgroup,
            self.key,
            ask=self.ask,
            find=lambda address, port: answers_to(address, self.sockets),
        )
        try:
            waiter.run(load)
        except GaveUp as e:
            return str(e)
        return ""

    @property
    def said(self) -> list[str]:
        """The statuses."""
        return [text.removeprefix("STATUS=") for _, text in self.sent if text.startswith("STATUS=")]

    @property
    def extended(self) -> list[tuple[float, float]]:
        """When systemd was told to wait until when."""
        prefix = "EXTEND_TIMEOUT_USEC="
        return [
            (when, when + int(text.removeprefix(prefix)) / 1e6) for when, text in self.sent if text.startswith(prefix)
        ]


def refused() -> OSError:
    return ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


def test_polling_adds_a_fiftieth_of_the_time_at_most() -> None:
    script = Script(lambda t: refused())
    reason = script.run(timeout=10)
    assert reason == "not ready after 10 s (/health: Connection refused)"
    begins = [sum(script.pauses[:i]) for i in range(len(script.pauses))]
    assert script.pauses == pytest.approx([min(max(0.01, begin / 50), 0.1) for begin in begins], abs=1e-6)
    assert {round(script.pauses[0], 3), round(script.pauses[-1], 3)} == {0.01, 0.1}
    assert script.probes == len(script.pauses) + 1


def test_ready_at_once() -> None:
    script = Script(lambda t: 200)
    assert script.run() == ""
    assert (script.pauses, script.probes, script.sent) == ([], 1, [])


@pytest.mark.parametrize(("status", "ready"), [(100, False), (200, True), (204, True), (299, True), (301, False),
                                               (302, False), (401, False), (404, False), (500, False), (503, False)])  # fmt: skip
def test_only_2xx_is_ready(status: int, ready: bool) -> None:
    script = Script(lambda t: status)
    assert script.run(timeout=1) == ("" if ready else f"not ready after 1 s (/health answers {status})")


def test_tells_what_it_waits_for() -> None:
    script = Script(lambda t: refused() if t < 1 else 503 if t < 3 else 200)
    assert script.run() == ""
    assert script.said == [
        "Waiting for the server: /health: Connection refused",
        "Waiting for the server: /health answers 503 (1 s)",
        "Waiting for the server: /health answers 503 (2 s)",
    ]


def test_ends_when_the_main_process_does() -> None:
    script = Script(lambda t: 503)
    script.ends_at = 1.0
    assert script.run() == "the server ended while it started (/health answers 503)"
    assert script.time - 100 == pytest.approx(1.0, abs=0.06)


def test_an_answer_is_not_believed_when_the_main_process_is_gone() -> None:
    script = Script(lambda t: 200)
    script.ends_at = 0
    assert script.run() == "the server ended while it started (/health answers 200)"


def test_a_stranger_is_refused_before_it_is_asked() -> None:
    script = Script(lambda t: 200)
    script.sockets = [Listener("0.0.0.0", 8000, 1000, 4711, cgroup=8)]
    assert script.run(cgroup=7) == "port 8000 is held by a process outside this unit (user 1000, socket 4711)"
    assert script.probes == 0


OWN, UNKNOWN = Listener("127.0.0.1", 8000, 0, 1, cgroup=7), Listener("0.0.0.0", 8000, 0, 2)


@pytest.mark.parametrize(
    ("cgroup", "sockets", "sent"),
    [(7, [OWN], "abc"), (7, [OWN, UNKNOWN], ""), (7, [UNKNOWN], ""), (7, [], ""), (0, [OWN], "")],
    ids=["own", "own and unknown", "unknown", "nobody", "ours unknown"],
)
def test_the_key_goes_to_the_units_own_socket_alone(cgroup: int, sockets: list[Listener], sent: str) -> None:
    script = Script(lambda t: 200)
    script.key, script.sockets = Key("THE_KEY", "abc"), sockets
    assert script.run(cgroup=cgroup) == ""
    assert script.keys == [sent] and "abc" not in repr(script.key)


@pytest.mark.parametrize(
    ("key", "sockets", "reason"),
    [
        (Key(), [OWN], "/health asks for a key (401), and its backend names no api_key"),
        (Key("THE_KEY"), [OWN], "/health asks for a key (401), and THE_KEY holds none"),
        (Key("THE_KEY", "abc"), [OWN], "/health refuses the key of THE_KEY (401)"),
        (Key("THE_KEY", "abc"), [UNKNOWN],
         "/health asks for a key (401), and the kernel does not tell whether it is this unit that would get it"),
    ],
    ids=["no variable", "not set", "wrong", "kept back"],
)  # fmt: skip
def test_a_refused_key_ends_the_wait_soon(key: Key, sockets: list[Listener], reason: str) -> None:
    script = Script(lambda t: 401)
    script.key, script.sockets = key, sockets
    assert script.run(cgroup=7) == reason
    assert REFUSED_FOR <= script.time - 100 < REFUSED_FOR + 1


def test_a_server_may_read_its_keys_after_it_listens() -> None:
    """Each refusal is excused for a while, and another answer in between begins that anew."""
    script = Script(lambda t: (403 if t % REFUSED_FOR < REFUSED_FOR - 1 else 503) if t < 60 else 200)
    assert script.run() == ""


def test_a_stranger_that_came_with_the_answer_is_refused() -> None:
    def answer(_: float) -> int:
        script.sockets = [Listener("127.0.0.1", 8000, 0, 1, cgroup=8)]
        return 200

    script = Script(answer)
    assert "outside this unit" in script.run(cgroup=7)


@pytest.mark.parametrize(
    ("own", "listener", "strange"),
    [
        (7, Listener("127.0.0.1", 8000, 0, 1, cgroup=7), False),
        (7, Listener("127.0.0.1", 8000, 0, 1, cgroup=8), True),
        (7, Listener("::", 8000, 0, 1, cgroup=8), True),
        (7, Listener("127.0.0.1", 8000, 0, 1, cgroup=0), False),  # the kernel does not say
        (0, Listener("127.0.0.1", 8000, 0, 1, cgroup=8), False),  # nor whose we are
        (7, Listener("127.0.0.2", 8000, 0, 1, cgroup=8), False),
        (7, Listener("::1", 8000, 0, 1, cgroup=8), False),
    ],
)
def test_who_is_a_stranger(own: int, listener: Listener, strange: bool) -> None:
    script = Script(lambda t: 200)
    script.sockets = [listener]
    assert bool(script.run(cgroup=own)) is strange


# --------------------------------------------------------------------------------------------------------------- stalls


def busy(t: float) -> Reading:
    """All of a core, and nothing else."""
    return Reading(when=t, cpu=t)


def loading(until: float, step: int = GROWTH) -> Callable[[float], Reading]:
    """Memory grows by so much in each second until then."""
    return lambda t: Reading(when=t, charged=int(min(t, until)) * step)


def test_nothing_moves() -> None:
    script = Script(lambda t: refused())
    assert script.run(stall=120) == "no sign of progress for 120 s (/health: Connection refused)"
    assert script.time - 100 == pytest.approx(120, abs=0.1)
    assert script.extended == []  # TimeoutStartSec= is 30 s longer by itself


def test_memory_that_grows_is_progress() -> None:
    script = Script(lambda t: 503)
    script.reading = loading(until=500)
    assert script.run(stall=120) == "no sign of progress for 120 s (/health answers 503)"
    assert script.time - 100 == pytest.approx(620, abs=2)


def test_small_growth_adds_up() -> None:
    script = Script(lambda t: 503)
    script.reading = loading(until=1000, step=GROWTH // 50)
    assert script.run(stall=120).startswith("no sign of progress for 120 s")
    assert script.time - 100 == pytest.approx(1000 + 120, abs=52)


@pytest.mark.parametrize("field", ["charged", "resident"])
def test_memory_that_comes_and_goes_is_none(field: str) -> None:
    script = Script(lambda t: 503)
    script.reading = lambda t: Reading(when=t, **{field: GROWTH * (100 if int(t) % 2 else 50)})
    script.run(stall=10)
    assert script.time - 100 < 13


def test_reading_on_at_the_memory_limit_is_progress() -> None:
    script = Script(lambda t: 503)
    script.reading = lambda t: Reading(when=t, charged=50 * GROWTH, reclaimed=int(min(t, 300)) * GROWTH)
    script.run(stall=10)
    assert script.time - 100 == pytest.approx(310, abs=2)


def test_a_hint_of_cortexd_is_progress() -> None:
    script = Script(lambda t: 503)
    script.reading = lambda t: Reading(when=t, hint=int(min(t, 90)) // 3)
    script.run(stall=10)
    assert script.time - 100 == pytest.approx(100, abs=3)


def test_a_hint_that_goes_and_comes_back_is_a_sign() -> None:
    """Its folder goes with the run: a new one begins without."""
    script = Script(lambda t: 503)
    script.reading = lambda t: Reading(when=t, hint=0 if 5 < t < 8 else 7)
    script.run(stall=10)
    assert script.time - 100 == pytest.approx(18, abs=1.2)


def test_cpu_time_alone_is_progress_for_a_while() -> None:
    """A server that compiles uses it, and so does one that is locked up and spins."""
    script = Script(lambda t: refused())
    script.reading = busy
    assert script.run(stall=120) == "no sign of progress but CPU time for 600 s (/health: Connection refused)"
    assert EXCUSE == 5 and script.time - 100 == pytest.approx(600, abs=2)


def test_cpu_time_that_ends_before() -> None:
    script = Script(lambda t: refused())
    script.reading = lambda t: busy(min(t, 200))
    assert script.run(stall=120) == "no sign of progress for 120 s (/health: Connection refused)"
    assert script.time - 100 == pytest.approx(320, abs=2)


def test_a_little_cpu_time_is_none() -> None:
    """The answers to the waiter's own questions."""
    script = Script(lambda t: 503)
    script.reading = lambda t: Reading(when=t, cpu=t * 0.05)
    script.run(stall=10)
    assert script.time - 100 < 11


def test_a_true_sign_gives_cpu_time_its_while_again() -> None:
    script = Script(lambda t: 503)
    script.reading = lambda t: Reading(when=t, cpu=t, charged=GROWTH * int(t >= 40))
    script.run(stall=10)
    assert script.time - 100 == pytest.approx(90, abs=2)


def test_an_answer_that_was_not_heard_before_is_progress() -> None:
    script = Script(lambda t: refused() if t < 8 else 503 if t < 16 else 500)
    assert script.run(stall=10) == "no sign of progress for 10 s (/health answers 500)"
    assert script.time - 100 == pytest.approx(26, abs=0.3)


def test_a_body_that_tells_how_far_it_is() -> None:
    script = Script(lambda t: (503, b'{"progress": %d}' % min(int(t / 2), 50)))
    assert script.run(stall=10) == "no sign of progress for 10 s (/health answers 503)"
    assert script.time - 100 == pytest.approx(110, abs=0.3)


def test_answers_that_alternate_are_none() -> None:
    script = Script(lambda t: 503 if int(t) % 2 else refused())
    script.run(stall=10)
    assert script.time - 100 < 12


def test_a_clock_in_the_answer_is_no_progress_for_ever() -> None:
    script = Script(lambda t: (503, str(t).encode()))
    assert script.run(stall=10, timeout=1e6).startswith("no sign of progress for 10 s")


# ------------------------------------------------------------------------------------------------------------ the time


def test_the_time_in_all() -> None:
    script = Script(lambda t: 503)
    script.reading = loading(until=1e9)
    assert script.run(timeout=700, stall=120) == "not ready after 700 s (/health answers 503)"
    assert script.time - 100 == pytest.approx(700, abs=0.2)


def test_systemd_waits_longer_than_the_waiter_at_every_moment() -> None:
    """Whenever the waiter would give up, systemd's time is not yet over, nor ever GRACE and a moment later."""
    script = Script(lambda t: 503)
    script.reading = loading(until=400)
    script.run(timeout=1000, stall=120)
    ended, deadline = script.time - 100, 120 + GRACE
    for when, until in script.extended:
        assert when < deadline  # it came in time
        deadline = max(deadline, until)
    assert ended + GRACE - 7 <= deadline <= ended + GRACE + 0.1
    assert 60 < len(script.extended) < 90  # every five seconds


def test_systemd_is_asked_for_no_more_than_the_time_in_all() -> None:
    script = Script(lambda t: 503)
    script.reading = loading(until=1e9)
    script.run(timeout=300, stall=120)
    assert max(until for _, until in script.extended) == pytest.approx(300 + GRACE, abs=0.1)


def test_a_stall_longer_than_the_time_in_all() -> None:
    script = Script(lambda t: refused())
    assert script.run(timeout=5, stall=120) == "not ready after 5 s (/health: Connection refused)"


# ------------------------------------------------------------------------------------------------------------ statuses


def test_says_how_far_it_is_once_a_second_at_most() -> None:
    script = Script(lambda t: 503)
    script.reading = lambda t: Reading(when=t, charged=int(t * 100 * 2**20))
    script.run(timeout=130)
    times = [when for when, text in script.sent if text.startswith("STATUS=")]
    assert all(b - a >= 0.999 for a, b in itertools.pairwise(times))
    what = "Waiting for the server: /health answers 503"
    assert script.said[0] == what
    assert re.fullmatch(re.escape(what) + r" \(1 s, 1\d\d MiB\)", script.said[1])
    assert re.fullmatch(re.escape(what) + r" \(2 min 5 s, 12\.\d GiB\)", script.said[-1])


def test_says_nothing_twice() -> None:
    script = Script(lambda t: 503)
    script.run(timeout=600)
    assert len(script.said) == len(set(script.said))
    assert 60 + 100 < len(script.said) < 60 + 112  # each second of the first minute, then each fifth


# --------------------------------------------------------------------------------------------------------------- loads


def test_ready_only_when_it_is_loaded() -> None:
    script = Script(lambda t: 200)

    def load() -> None:
        script.watch.doing("Loading")
        script.watch.pause(5)

    assert script.run(load=load) == ""
    assert script.time - 100 == pytest.approx(5)
    assert script.said[:2] == ["Loading", "Loading (1 s)"]


def test_a_load_that_stalls() -> None:
    script = Script(lambda t: 200)
    assert script.run(stall=10, load=lambda: script.watch.doing("Loading") or (script.watch.pause(1e9) and None)) == (
        "no sign of progress for 10 s (Loading)"
    )


def test_a_load_during_which_the_server_ends() -> None:
    script = Script(lambda t: 200)
    script.ends_at = 3
    assert script.run(load=lambda: script.watch.doing("Loading") or (script.watch.pause(1e9) and None)) == (
        "the server ended while it started (Loading)"
    )


def test_a_load_after_which_a_stranger_has_the_port() -> None:
    script = Script(lambda t: 200)

    def load() -> None:
        script.sockets = [Listener("127.0.0.1", 8000, 0, 1, cgroup=8)]

    assert "outside this unit" in script.run(cgroup=7, load=load)
