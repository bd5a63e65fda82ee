"""Every misbehaviour of a server, as a real process on a real daemon and systemd: what cortexd calls it and does to it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon, _running
from tests.support.units import make_program, properties
from tests.support.wait import until

MOODY = Path(__file__).parents[1] / "support" / "servers" / "moody.py"
QUICK = ["health.interval_seconds=2", "health.timeout_seconds=1.8", "health.max_failures=2",
         "health.busy_timeout_seconds=6", "RestartSec=0.2"]  # fmt: skip
CALM = ["health.interval_seconds=4", "health.timeout_seconds=3.8"]
"""For rows that are left alone: a test machine that is itself too busy to look must not condemn them."""

RESTART, LEAVE = True, False


@dataclass(frozen=True)
class Row:
    """What one mood leads to."""

    mood: str
    restarted: bool
    says: str
    """The reason, as a regular expression."""
    outcome: str
    """In the history."""
    state: str = ""
    """While it lasts, where it is left alone."""
    probe: str = "http"

    @property
    def name(self) -> str:
        return f"{self.mood}-{self.probe}"


TABLE = [
    Row("hang", RESTART, "no answer within 1.8 s", "time-out"),
    Row("drip-head", RESTART, "no answer within 1.8 s", "time-out"),
    Row("drip", RESTART, "the answer does not end within 1.8 s", "unfinished-answer"),
    Row("endless", RESTART, "the answer is longer than 64 KiB", "too-long-answer"),
    Row("length", RESTART, "the answer ends too early", "broken-answer"),
    Row("noise", RESTART, "the answer is no HTTP", "broken-answer"),
    Row("close", RESTART, "the answer ends too early", "broken-answer"),
    Row("redirect", RESTART, "the endpoint answers 302", "redirect"),
    Row("html", RESTART, "the endpoint answers 200, but not what a well server says", "wrong-answer"),
    Row("error", RESTART, "the endpoint answers 500", "server-error"),
    Row("refuse", RESTART, "no connection: Connection refused", "connection-refused"),
    Row("busy", LEAVE, "no answer within 3.8 s, but its own count of tokens", "time-out", "busy"),
    Row("slow", LEAVE, "no answer within 3.8 s, but it", "time-out", "busy"),
    Row("spin", RESTART, "no answer within 1.8 s", "time-out"),
    Row("lie", LEAVE, "", "ok", "ready"),
    Row("lie", RESTART, "the engine generates no token within 1.8 s|asked for a token: no answer", "time-out", probe="engine"),
    Row("noisy-lie", RESTART, "the engine generates no token within 1.8 s|asked for a token: no answer", "time-out", probe="engine"),
    Row("asleep", LEAVE, "", "ok", "ready", probe="engine"),
]  # fmt: skip


class Daemon5s(Daemon):
    """One that does not wait five minutes until it asks for a token."""

    program = (
        "-c", "import cortexd.health.policy as policy; policy.ENGINE_EVERY = 3; from cortexd.app import main; main()",
    )  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """All of them, running; their InvocationIDs by name. Their moods change when all are ready."""
    folder = Path.home() / "moods"
    folder.mkdir()
    server = make_program(Path.home() / "bin" / "moody", MOODY)
    cortex = Cortex()
    with _running(tmp_path_factory.mktemp("daemon") / "cortexd.log", Daemon5s):
        for row in TABLE:
            cortex.run(
                "register", row.name, "--backend", "llamacpp", "--path", str(lab.TINY_GGUF), "--exec", str(server),
                "--gpus", "none", "--port", "auto", "--memory", "1G", "--extra-args", f"--mood {folder / row.name}",
                *(word for setting in [*QUICK, f"health.probe={row.probe}", *([] if row.restarted else CALM)] for word in ("--set", setting)),
            )  # fmt: skip
        cortex.run("start", *(row.name for row in TABLE))
        runs = {row.name: properties(f"cortex-{row.name}.service", "InvocationID")["InvocationID"] for row in TABLE}
        for row in TABLE:
            (folder / row.name).write_text(row.mood)
        yield runs
    shutil.rmtree(folder)


def events(name: str, run: str) -> list[dict[str, Any]]:
    """What is known of one run, oldest first."""
    found = [event for event in Cortex().json("events", name) if event["InvocationID"] == run]
    return sorted(found, key=lambda event: int(event["Id"]))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_misbehaviour(models: dict[str, str], row: Row) -> None:
    cortex, run, unit = Cortex(), models[row.name], f"cortex-{row.name}.service"
    if row.restarted:
        told = until(
            lambda: [e for e in events(row.name, run) if e["Kind"] == "health-restart"], f"{row.name}'s restart", 60
        )
        assert re.match(rf"2 health probes failed in a row, the last: ({row.says})", told[0]["Message"])
        assert len(told) == 1
        cortex.until_state(row.name, "ready")
        kinds = [e["Kind"] for e in events(row.name, run)]
        assert kinds.index("degraded") < kinds.index("health-restart") < kinds.index("ended")
        assert kinds.count("degraded") == 1 and ("busy" in kinds) == (row.mood in ("spin", "noisy-lie"))
        now = properties(unit, "InvocationID", "NRestarts")
        assert now["InvocationID"] != run and now["NRestarts"] == "1"  # systemd's own restart, once
        return
    until(lambda: cortex.properties(row.name)["State"] == row.state, f"{row.name} to be {row.state}", 60)
    # Many more rounds than would condemn it, and longer than CPU time is an excuse.
    rounds = until(lambda: _rounds(cortex, row), f"{row.name}'s probes", 120)
    assert {(r[2], r[4]) for r in rounds} == {(row.outcome, "busy" if row.state == "busy" else "ok")}
    found = cortex.properties(row.name)
    assert (found["State"], found["InvocationID"], found["HealthFailures"]) == (row.state, run, 0)
    assert re.match(row.says, found["HealthReason"])
    kinds = [e["Kind"] for e in events(row.name, run)]
    assert not {"degraded", "health-restart", "ended"} & set(kinds)
    assert kinds.count("busy") == (row.state == "busy")  # a probe that changes nothing writes nothing


def _rounds(cortex: Cortex, row: Row) -> list[Any] | None:
    """The last ten, once they are all of that mood."""
    # Its status is 1 where the server is not well.
    (found,) = json.loads(cortex.run("health", row.name, "--json", check=False).stdout)
    history = found["History"]
    wanted = "busy" if row.state == "busy" else "ok"
    return history if len(history) == 10 and all(past[4] == wanted for past in history) else None
