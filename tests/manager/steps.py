"""What the manager's tests do again and again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from cortexd.health.policy import Outcome
from cortexd.model import SETTINGS
from cortexd.names import FOLDER_TEMPLATE
from cortexd.states import State
from tests.support.house import House

JOURNALCTL = """#!/bin/sh
case "$*" in *output=json*) echo '{"__REALTIME_TIMESTAMP":"1","_SYSTEMD_USER_UNIT":"x","MESSAGE":"last words of '"$*"'"}';; esac
"""


def journal_of(*lines: dict[str, str]) -> str:
    """A journalctl that finds these lines, whatever it is asked for; the last is the newest."""
    first = {"_SYSTEMD_USER_UNIT": "cortex-a.service", "SYSLOG_IDENTIFIER": "cortex-a", "_PID": "9"}
    told = [json.dumps({"__REALTIME_TIMESTAMP": str(n), **first, **line}) for n, line in enumerate(lines)]
    return "\n".join(["#!/bin/sh", "case \"$*\" in *output=json*) cat <<'END'", *told[::-1], "END", ";;", "esac", ""])


def fail(error: Exception) -> Callable[..., Any]:
    """A method that fails."""

    async def failing(*_: object, **__: object) -> None:
        raise error

    return failing


def everything(house: House) -> dict[str, object]:
    """All that must be as before where something failed: the files, the models' settings, what is registered."""
    files = {p.name: p.read_text() for p in house.scope.unit_folder.iterdir() if p.is_file()}
    files.pop(FOLDER_TEMPLATE, None)
    with sqlite3.connect(house.scope.database) as connection:
        rows = connection.execute("SELECT name, settings FROM models").fetchall()
    connection.close()
    specs = {name: model.spec for name, model in house.manager.catalog.models.items()}
    return {"files": files, "rows": rows, "specs": specs}


def like(name: str, house: House, **changed: object) -> dict[str, object]:
    return {**house.manager.view(name).model.definition.explicit, **changed}


async def starting(house: House, unit: str) -> None:
    house.systemd.behave(unit, start="hang")
    await house.start()


async def ready(house: House, unit: str) -> None:
    await (await house.start()).wait()


async def restarting(house: House, unit: str) -> None:
    house.systemd.behave(unit, restart=True)
    await (await house.start()).wait()
    house.systemd.crash(unit)
    assert house.state() is State.RESTARTING


async def failed(house: House, unit: str) -> None:
    await (await house.start()).wait()
    house.systemd.crash(unit)
    assert house.state() is State.FAILED


async def stopping(house: House, unit: str) -> None:
    await (await house.start()).wait()
    house.systemd.behave(unit, stop="hang")
    await house.stop()
    await house.until(State.STOPPING)


PHASES = [starting, ready, restarting, failed, stopping]


QUICK = {"health__interval_seconds": 0.2, "health__timeout_seconds": 0.2, "health__max_failures": 2}


async def sick(house: House, **more: object) -> tuple[str, str]:
    unit = await house.register(**{**QUICK, **more})
    house.systemd.behave(unit, restart=True)
    await (await house.start()).wait()
    run = house.unit().invocation_id
    house.prober.outcome, house.prober.reason = Outcome.TIMEOUT, "no answer"
    return unit, run


async def again(house: House, *, before: Callable[[], object] = lambda: None) -> None:
    await house.close()
    before()
    await house.open()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


ROWS = st.dictionaries(st.sampled_from([*SETTINGS, "unknown"]), JSON, max_size=4) | JSON


NASTY: list[tuple[str, str]] = [
    ("bad.service", "{}"), ("../../etc", "{}"), ("", "{}"), ("json", "{"), ("list", "[]"), ("unknown", '{"no": 1}'),
    ("host", '{"host": "nonsense"}'), ("type", '{"port": {"a": 1}}'),
]  # fmt: skip
