"""Which of all that is known names the cause: systemd and the kernel before the log, people before both."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import pytest

from cortexd.diagnosis.evidence import Evidence, Line, lines_of, with_status
from cortexd.diagnosis.why import Cause, explain, from_details
from cortexd.events import Ending
from cortexd.model import ModelSpec, build_spec, parse_settings
from cortexd.runlog import RunLine, RunLog
from cortexd.systemd.memory import MemoryEvents
from cortexd.systemd.protocol import UnitState

EXITED, KILLED, DUMPED = 1, 2, 3
RUN = "f" * 32
SPEC = build_spec("a", parse_settings({"path": "/m/x.gguf", "port": 8000, "memory": "2G", "exec": "/bin/llama-server"}), {
    "health.endpoint": "/health", "Restart": "no", "TasksMax": 512})  # fmt: skip
OOM_LINE = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.50 GiB."


def server(*texts: str) -> tuple[Line, ...]:
    return tuple(Line(text) for text in texts)


def manager(*texts: str) -> tuple[Line, ...]:
    return tuple(Line(text, manager=True) for text in texts)


def cause(
    *lines: Line, code: int = EXITED, status: int = 1, result: str = "exit-code", spec: ModelSpec = SPEC, **more: Any
) -> Cause:
    unit = {key: more.pop(key) for key in ("status_text", "n_restarts", "active_state") if key in more}
    state = UnitState(
        unit="cortex-a.service", invocation_id=RUN, result=result, exec_main_code=code, exec_main_status=status,
        **{"active_state": "failed", "sub_state": "failed"} | unit,
    )  # fmt: skip
    return explain(Evidence(spec=spec, unit=state, executable="/bin/llama-server", lines=lines, **more))


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"extra_args": "--bogus"}, "-p extra_args"),
        ({"backend": "llamacpp"}, "install a version of llamacpp"),
        ({"backend": "mine"}, "correct it in the file of the backend mine"),
        ({"backend": "mine", "extra_args": "--bogus"}, "-p extra_args"),
    ],
)
def test_a_wrong_option_is_corrected_where_it_stands(settings: dict[str, str], remedy: str) -> None:
    found = cause(*server("error: unrecognized arguments: --bogus"), spec=replace(SPEC, **settings))
    assert found.cause == "bad-option" and remedy in found.remedy


HOSTILE = server(OOM_LINE, "bind: address already in use", "unknown model architecture: 'x'", "Read-only file system")


@pytest.mark.parametrize(
    ("told", "word", "says"),
    [
        ({"ending": Ending(RUN, "stop"), "stopped_by": "me[7]"}, "stopped", "stopped by me[7]"),
        ({"result": "success", "status": 0, "lines": manager("Stopping Cortex Model: a...")}, "stopped", "by systemd"),
        ({"result": "oom-kill", "code": KILLED, "status": 9}, "out-of-memory", "memory limit of 2G"),
        ({"result": "oom-kill", "code": KILLED, "status": 9, "memory": MemoryEvents(1, 1, 5, 2 << 30)}, "out-of-memory",
         "limit of 2G"),
        ({"result": "oom-kill", "code": KILLED, "status": 9, "memory": MemoryEvents(0, 1, 0)}, "machine-out-of-memory",
         "the machine was out of memory"),
        ({"result": "oom-kill", "code": KILLED, "status": 9, "lines": manager("systemd-oomd killed 3 process(es) in this unit.")},
         "machine-out-of-memory", "systemd-oomd"),
        ({"result": "signal", "code": KILLED, "status": 9, "memory": MemoryEvents(1, 1, 5)}, "out-of-memory", "2G"),
        ({"status": 203}, "executable-missing", "/bin/llama-server does not exist"),
        ({"status": 203, "lines": manager("a: Failed at step EXEC spawning /bin/llama-server: Permission denied")},
         "executable-broken", "Permission denied"),
        ({"status": 203, "lines": manager("a: Failed at step EXEC spawning /bin/llama-server: Exec format error")},
         "executable-broken", "Exec format error"),
        ({"status": 226}, "sandbox-failed", "sandbox cannot be made"),
        ({"status": 226, "lines": manager("a: Failed to set up mount namespacing: /x/y: No such file or directory")},
         "sandbox-failed", "/x/y: No such file or directory"),
        ({"status": 217}, "sandbox-failed", "user namespaces"),
        ({"status": 243}, "credential-missing", "credential"),
        ({"result": "resources", "code": 0, "status": 0}, "resources", "could not prepare"),
        ({"result": "timeout", "code": KILLED, "status": 9, "lines": manager("a: start-post operation timed out. Terminating.")},
         "start-timeout", "not ready in time"),
        ({"result": "timeout", "code": KILLED, "status": 9, "lines": manager("a: State 'stop-sigterm' timed out. Killing."),
          "stop_seconds": 20}, "stop-timeout", "within 20 s"),
        ({"result": "timeout", "code": KILLED, "status": 9}, "timeout", "within its time"),
        ({"status_text": "Not ready: not ready after 5 s (/health answers 503)"}, "start-timeout", "after 5 s"),
        ({"status_text": "Not ready: no sign of progress for 120 s (/health answers 503)"}, "stalled", "progress for 120 s"),
        ({"status_text": "Not ready: /health asks for a key (401), and KEY holds none"}, "key-refused", "KEY holds none"),
        ({"status_text": "Not ready: port 8000 is held by a process outside this unit (user 0)"}, "port-in-use", "user 0"),
        ({"code": KILLED, "status": 9, "result": "signal"}, "killed", "SIGKILL from outside"),
        ({"code": KILLED, "status": 15, "result": "signal"}, "killed", "SIGTERM from outside"),
        ({"code": KILLED, "status": 9, "result": "signal", "ending": Ending(RUN, "kill", 9)}, "killed", "cortexctl kill"),
        ({"result": "success", "status": 0, "ending": Ending(RUN, "kill", signal.SIGTERM)}, "killed", "SIGTERM with cortexctl"),
        ({"code": KILLED, "status": 9, "result": "signal", "ending": Ending(RUN, "health", 9),
          "probes": "3 health probes failed in a row, the last: 503"}, "unhealthy", "the last: 503"),
    ],
)  # fmt: skip
def test_what_outranks_the_log(told: dict[str, Any], word: str, says: str) -> None:
    lines = (*HOSTILE, *told.pop("lines", ()))
    found = cause(*lines, **told)
    assert (found.cause, says in found.sentence) == (word, True), found
    assert found.remedy


@pytest.mark.parametrize(
    ("told", "word", "says"),
    [
        ({}, "unknown", "the server exited with status 1"),
        ({"lines": server(OOM_LINE)}, "cuda-out-of-memory", "3.50 GiB"),
        ({"lines": server(OOM_LINE), "result": "success", "status": 0}, "cuda-out-of-memory", "3.50 GiB"),
        ({"lines": server("CUDA error: out of memory"), "code": DUMPED, "status": 6, "result": "core-dump"},
         "cuda-out-of-memory", "GPU"),
        ({"lines": manager(OOM_LINE)}, "unknown", "status 1"),
        ({"code": DUMPED, "status": 11, "result": "core-dump"}, "crashed", "SIGSEGV"),
        ({"code": DUMPED, "status": 4, "result": "core-dump"}, "crashed", "processor lacks"),
        ({"code": DUMPED, "status": 31, "result": "core-dump"}, "crashed", "sandbox forbids"),
        ({"result": "success", "status": 0}, "exited", "by itself with status 0"),
        ({"n_restarts": 4}, "crash-loop", "status 1"),
        ({"result": "start-limit-hit", "code": 0, "status": 0}, "crash-loop", "too often"),
        ({"n_restarts": 4, "lines": server("bind: address already in use")}, "port-in-use", "port 8000 is taken"),
        ({"n_restarts": 1, "active_state": "activating"}, "unknown", "the server exited with status 1"),
        ({"status_text": "Not ready: Ollama cannot pull x: pull model manifest: file does not exist"}, "repository-unknown",
         "/m/x.gguf"),
        ({"status_text": "Not ready: something else"}, "unknown", "status 1"),
    ],
)  # fmt: skip
def test_the_log_and_what_is_left(told: dict[str, Any], word: str, says: str) -> None:
    found = cause(*told.pop("lines", ()), **told)
    assert (found.cause, says in found.sentence) == (word, True), found


def test_the_evidence() -> None:
    lines = server("first", "bind: address already in use", *(f"line {number}" for number in range(9)))
    found = cause(*lines, n_restarts=2, memory=MemoryEvents(0, 0, 7, 300 << 20), probes="1 failed",
                  status_text="Not ready: the server ended at once")  # fmt: skip
    assert found.evidence[:7] == (
        ("Result", "exit-code"),
        ("Exit", "status 1"),
        ("Restarts", "2"),
        ("Memory", "limit 2G, at most 300M used; throttled: 7"),
        ("Probes", "1 failed"),
        ("Status", "Not ready: the server ended at once"),
        ("Run", RUN),
    )
    assert [text for _, text in found.evidence[7:]] == [
        "bind: address already in use",
        *(f"line {n}" for n in range(4, 9)),
    ]
    assert {label for label, _ in found.evidence[7:]} == {"Log"}


def test_a_cause_as_an_event_keeps_it() -> None:
    found = cause(*server("bind: address already in use"))
    assert from_details(found.details()) == found
    for broken in ({}, {"cause": "x"}, {**found.details(), "evidence": [1]}, {**found.details(), "evidence": None}):
        assert from_details(broken) is None


def test_a_log_is_bounded() -> None:
    lines = lines_of(RunLog(tuple(RunLine(n, "a[1]", "x" * 5000, manager=n % 2 == 0) for n in range(5000))))
    assert len(lines) == 200 and [line.manager for line in lines[:2]] == [True, False]
    assert len(lines[-1].text) == 1000 and len(lines[-1].shown) < 400


def test_what_was_lost_is_told() -> None:
    assert ("Lost", "the journal dropped lines") in cause(lost="the journal dropped lines").evidence


def test_what_was_not_the_last_line_is_not_called_so() -> None:
    said = server("loading shard 3")
    assert cause(*said, status=3).sentence == "the server exited with status 3; the last it said: loading shard 3"
    found = cause(*said, status=3, lost="the journal dropped lines")
    assert (
        found.sentence
        == "the server exited with status 3; what it said last may be lost, since the journal was flooded"
    )
    assert ("Log", "loading shard 3") in found.evidence
    assert "Lost" not in dict(cause().evidence)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "non-default args: {'api_key': ['sk-123456'], 'port': 8000}",
            "non-default args: {'api_key': ['…'], 'port': 8000}",
        ),
        ("HF_TOKEN=hf_abcdefghijkl is bad", "HF_TOKEN=… is bad"),
        ("using hf_abcdefghijkl", "using …"),
        ("--api-key sk-123456789 --port 1", "--api-key … --port 1"),
        ("token = 12345678", "token = …"),
        ("n_tokens = 12345678, max_tokens: 40960", "n_tokens = 12345678, max_tokens: 40960"),
    ],
)
def test_secrets_are_not_shown(line: str, shown: str) -> None:
    assert Line(line).shown == shown


def test_no_secret_in_a_sentence_either() -> None:
    found = cause(*server("error: invalid argument: --api-key=sk-123456789"))
    assert "sk-" not in str(found)
    assert found.sentence == "the server does not know the option --api-key=…"


@pytest.mark.parametrize("known", [True, False])
def test_what_is_not_known_is_in_the_servers_own_last_words(known: bool) -> None:
    """Not in the waiter's, also where the unit's status is no longer known: of a past run."""
    status = "Not ready: the server ended while it started (it never answered)"
    lines = (
        *server("loading", "fatal: I die", status),
        *manager(
            "a: Main process exited, code=exited, status=3", "a: Failed with result 'exit-code'.", "Failed to start."
        ),
    )
    found = cause(*lines, status=3, status_text=status if known else "")
    assert found.cause == "unknown"
    assert found.sentence == "the server exited with status 3; the last it said: fatal: I die"
    assert [text for label, text in found.evidence if label == "Log"] == ["loading", "fatal: I die"]
    assert with_status(UnitState(unit="a"), lines).status_text == status
    silent = cause(*manager("a: Main process exited"), status=3)
    assert [text for label, text in silent.evidence if label == "Log"] == ["a: Main process exited"]
