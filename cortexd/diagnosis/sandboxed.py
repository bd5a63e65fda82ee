"""What a model's sandbox lets its server see and write: tried by a unit that has the same one (cortexd/sandbox/trial.py)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cortexd.errors import CortexError
from cortexd.registered import Model
from cortexd.sandbox import dropins, inside
from cortexd.sandbox.trial import Look, Trials, failure, sandbox_of
from cortexd.scope import Scope
from cortexd.systemd.protocol import Systemd, UnitState
from cortexd.units.render import Tools, written_folders

_MAX_READ = 500  # paths; a line of a unit file may be 1 MiB long


@dataclass(frozen=True, slots=True)
class Denied:
    """What the sandbox did not let through."""

    path: Path
    errno: int
    write: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """How the look from inside ended. `failure`: why there was none; empty where all was tried."""

    denied: tuple[Denied, ...] = ()
    failure: str = ""


class Sandboxes:
    """Tries what models' sandboxes let through."""

    def __init__(self, scope: Scope, tools: Tools, systemd: Systemd, trials: Trials) -> None:
        self._scope, self._tools, self._systemd, self._trials = scope, tools, systemd, trials

    async def attempt(self, model: Model, reads: Sequence[Path]) -> Trial:
        """Try to run the server's program, to read `reads` and to write the folders that are there."""
        try:
            state = await self._systemd.refresh(model.unit)
            tried: list[tuple[Path, bool]] = []
            ended = await self._trials.run(model.name, lambda: self._look(model, reads, state, tried))
            return _read(ended, tried)
        except (OSError, TimeoutError, CortexError) as e:
            return Trial(failure=str(e) or "its files cannot be written in time")

    def _look(self, model: Model, reads: Sequence[Path], state: UnitState, tried: list[tuple[Path, bool]]) -> Look:
        """The unit; blocking. Adds to `tried` what it tries: path, and whether to write it."""
        script = Path(inside.__file__).resolve()
        folders = [p for p in map(Path, written_folders(model.spec, model.plan)) if p.is_dir()]
        program = model.plan.argv[0]
        tried += [(Path(program), False), *((p, False) for p in [p for p in reads if _encodable(p)][:_MAX_READ])]
        tried += [(p, True) for p in folders]
        words = ["--run", program]
        for p, write in tried[1:]:
            words += ["--write" if write else "--read", str(p)]
        lines = [*sandbox_of(model, script, self._scope, self._tools), *dropins.lines_of(state.drop_in_paths)]
        about = f"What the sandbox of model {model.name} lets through"
        return Look(about, lines, script, words)


def _read(state: UnitState, tried: Sequence[tuple[Path, bool]]) -> Trial:
    """What the unit's end and its status say. Pure."""
    said = state.status_text
    if state.active_state != "active" or not re.fullmatch(r"ok|\d+:\d+( \d+:\d+)*", said):
        return Trial(failure=failure(state))
    pairs = [tuple(map(int, word.split(":"))) for word in said.split()] if said != "ok" else []
    return Trial(tuple(Denied(tried[n][0], errno, tried[n][1]) for n, errno in pairs if n < len(tried)))


def _encodable(path: Path) -> bool:
    try:
        return str(path).encode() is not None and "\0" not in str(path)
    except UnicodeEncodeError:
        return False
