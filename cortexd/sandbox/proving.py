"""Finds out what models' sandboxes do on this machine: tries them, once a boot and release of systemd, and keeps it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cortexd.bounded import in_thread
from cortexd.errors import CortexError, InvalidConfig
from cortexd.registered import Model
from cortexd.sandbox import attempts
from cortexd.sandbox.judging import NEED_NAMESPACES, Effect, Proof, Results, Row, not_in_force, table
from cortexd.sandbox.trial import SET_UP, Look, Trials, failure, sandbox_of
from cortexd.scope import Scope
from cortexd.systemd.protocol import Systemd, UnitState
from cortexd.units import files
from cortexd.units.render import Tools, has_namespaces

log = logging.getLogger(__name__)

REFUSED = "this machine gives a user's services no namespaces; 'cortexctl doctor' says why"
_NAMESPACES = ("PrivateUsers=true", "ProtectSystem=strict")
_SCRIPT = Path(attempts.__file__).resolve()
_MAX_KEPT, _MAX_FILE = 200, 1 << 20
_SECONDS = 5.0  # for a look at files
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_FOLDERS = {"tmp": "/tmp", "var-tmp": "/var/tmp", "shared-memory": "/dev/shm", "devices": "/dev"}


class Prover:
    """What is in force here. One look at a time; what it brought is kept in a file of ours until the next boot."""

    def __init__(self, scope: Scope, tools: Tools, systemd: Systemd, trials: Trials) -> None:
        self._scope, self._tools, self._systemd, self._trials = scope, tools, systemd, trials
        self._path = scope.data / "sandbox.json"
        self._proofs: dict[str, Proof] = {}
        self._known = scope.runtime is None  # then nothing can be tried, nor started
        self._looking = asyncio.Lock()
        self.on_namespaces: Callable[[], Awaitable[None]] = _nothing
        """Awaited when Tools.namespaces has changed, and units with it."""

    async def load(self) -> None:
        """Take over what is known since this boot; of namespaces also what was known before it, until they are tried."""
        try:
            kept = await in_thread(_SECONDS, lambda: _read(self._path))
        except (OSError, TimeoutError, ValueError) as e:
            if not isinstance(e, FileNotFoundError):
                log.warning("%s cannot be read, and is made anew: %s", self._path, e)
            return
        self._tools.namespaces = kept["namespaces"]
        if kept["when"] == self._when():
            self._proofs, self._known = kept["proofs"], True

    async def know(self) -> None:
        """Know whether there are namespaces, which a unit's text depends on; at once, but for once a boot."""
        if not self._known:
            async with self._looking:
                if not self._known:
                    await self._try_namespaces()

    async def rows(self, model: Model, *, again: bool = False) -> list[Row]:
        """The table of a model; tried now where it is not known, or `again`."""
        async with self._looking:
            if again or not self._known:
                await self._try_namespaces()
            proof = await self._prove(model, again=again)
        rows = table(model.spec, proof, self._left_out(model))
        model.sandbox_problem = problem(rows, self._left_out(model))
        return rows

    async def before_start(self, model: Model) -> None:
        """Raise InvalidConfig where the model's sandbox is required and not in force."""
        await self.know()
        if not model.spec.hardening.sandbox_required:
            return
        if has_namespaces(model.spec) and not self._tools.namespaces:
            raise InvalidConfig(f"sandbox_required=yes: {REFUSED}, or set sandbox_required=no")
        rows = await self.rows(model)
        if missing := not_in_force(rows):
            raise InvalidConfig(
                f"sandbox_required=yes: {', '.join(missing)}: not in force here; see 'cortexctl security {model.name}', "
                "or set sandbox_required=no"
            )
        if any(row.effect is Effect.UNKNOWN for row in rows):
            why = next(row.why for row in rows if row.effect is Effect.UNKNOWN)
            raise InvalidConfig(f"sandbox_required=yes: its sandbox cannot be tried: {why}; or set sandbox_required=no")

    def _left_out(self, model: Model) -> str:
        return "" if self._tools.namespaces or not has_namespaces(model.spec) else REFUSED

    async def _try_namespaces(self) -> None:
        """With a unit that asks for nothing else, so that no path of a model's is to blame."""
        look = Look("Whether there are namespaces", _NAMESPACES, _SCRIPT, (json.dumps(await self._where()),))
        try:
            ended = await self._trials.run("namespaces", lambda: look)
        except (OSError, TimeoutError, CortexError) as e:
            log.warning("whether this machine gives namespaces to services cannot be tried: %s", e)
            return
        self._known = True
        # A user namespace that is not there although it was asked for is one that systemd went on without.
        results = _results(ended.status_text)
        refused = ended.exec_main_status in SET_UP if results is None else results.get("user-namespace") == 0
        before, self._tools.namespaces = self._tools.namespaces, not refused
        if before != self._tools.namespaces:
            log.warning("a user's services get %s on this machine", "namespaces" if not refused else "no namespaces")
            await self.on_namespaces()
        await self._keep()

    async def _prove(self, model: Model, *, again: bool) -> Proof:
        state = await self._systemd.refresh(model.unit)
        try:
            lines = await in_thread(_SECONDS, lambda: sandbox_of(model, _SCRIPT, self._scope, self._tools))
            key = await in_thread(_SECONDS, lambda: _key(lines, state.drop_in_paths))
        except (OSError, TimeoutError, CortexError) as e:
            return Proof({}, {}, str(e) or "the disk does not answer in time")
        if not again and key in self._proofs:
            return self._proofs[key]
        words = (json.dumps(await self._where()),)
        inner = Look(f"What the sandbox of model {model.name} lets through", lines, _SCRIPT, words, state.drop_in_paths)
        outer = replace(inner, about="The same without a sandbox", lines=(), drop_ins=())
        try:
            ended = await asyncio.gather(
                self._trials.run(model.name, lambda: inner), self._trials.run(f"{model.name}-free", lambda: outer)
            )
        except (OSError, TimeoutError, CortexError) as e:
            return Proof({}, {}, str(e) or "its files cannot be written in time")
        proof = _proof(*ended)
        if not proof.failure:
            self._proofs[key] = proof
            await self._keep()
        return proof

    async def _where(self) -> attempts.Where:
        """What the attempts are told, of the machine as we see it."""
        scope = self._scope
        folders = {**_FOLDERS, "home": str(scope.home)}

        def look() -> attempts.Where:
            seen = {f"{name}-is": attempts.identity(path) for name, path in folders.items() if Path(path).is_dir()}
            seen["user-namespace-is"] = str(Path("/proc/self/ns/user").readlink())
            return seen

        where = {"data": str(scope.data), "units": str(scope.unit_folder), "runtime": str(scope.runtime or "")}
        return {**folders, **where, **await in_thread(_SECONDS, look)}

    def _when(self) -> str:
        """What a look's outcome depends on: boot, manager, and what is tried."""
        try:
            boot = _BOOT.read_text().strip()
        except OSError:
            boot = ""
        return f"{boot} {self._systemd.version} {hashlib.sha256(_SCRIPT.read_bytes()).hexdigest()[:16]}"

    async def _keep(self) -> None:
        while len(self._proofs) > _MAX_KEPT:
            del self._proofs[next(iter(self._proofs))]
        kept = {
            "when": self._when(),
            "namespaces": self._tools.namespaces,
            "proofs": {key: asdict(proof) for key, proof in self._proofs.items()},
        }
        try:
            await in_thread(_SECONDS, lambda: files.write(self._path, json.dumps(kept) + "\n"))
        except (OSError, TimeoutError) as e:
            log.warning("%s cannot be written: %s", self._path, e or "no answer")


async def _nothing() -> None:
    return None


def problem(rows: list[Row], left_out: str) -> str:
    """What `status` warns of; empty where all is well. Pure."""
    if left_out:
        missing = [row.directive for row in rows if row.directive in NEED_NAMESPACES and row.effect is not Effect.OFF]
        return f"sandbox: {', '.join(missing)} are left out: {left_out}; sandbox_required=yes refuses to start instead"
    missing = not_in_force(rows)
    return f"sandbox: {', '.join(missing)}: not in force on this machine" if missing else ""


def _proof(sandbox: UnitState, control: UnitState) -> Proof:
    inner, outer = _results(sandbox.status_text), _results(control.status_text)
    if inner is None:
        return Proof({}, {}, failure(sandbox))
    if outer is None:
        return Proof({}, {}, f"without a sandbox, {failure(control)}")
    return Proof(inner, outer)


def _results(said: str) -> Results | None:
    """What the attempts said, or None for anything else."""
    if not re.fullmatch(r"[a-z-]+:\d{1,4}( [a-z-]+:\d{1,4})*", said):
        return None
    return {name: int(number) for name, number in (word.split(":") for word in said.split())}


def _key(lines: list[str], drop_ins: tuple[str, ...]) -> str:
    """Of what a sandbox is made of; blocking."""
    parts = list(lines)
    for path in drop_ins:
        with Path(path).open("rb") as file:
            parts.append(f"{path} {hashlib.sha256(file.read(_MAX_FILE)).hexdigest()}")
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """What was kept. Raises OSError, and ValueError for what we did not write."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        text = file.read(_MAX_FILE + 1)
    try:
        kept = json.loads(text)
    except RecursionError:
        kept = None
    if not isinstance(kept, dict) or not isinstance(kept.get("namespaces"), bool):
        raise ValueError("it is not what cortexd wrote")
    proofs = kept.get("proofs")
    if not isinstance(kept.get("when"), str) or not isinstance(proofs, dict):
        raise ValueError("it is not what cortexd wrote")
    return {**kept, "proofs": {str(key): _kept_proof(value) for key, value in proofs.items()}}


def _kept_proof(value: object) -> Proof:
    if not isinstance(value, dict):
        raise ValueError("it is not what cortexd wrote")
    found: list[Results] = []
    for part in ("sandbox", "control"):
        results = value.get(part)
        if not isinstance(results, dict) or not all(isinstance(number, int) for number in results.values()):
            raise ValueError("it is not what cortexd wrote")
        found.append({str(name): int(number) for name, number in results.items()})
    return Proof(found[0], found[1])
