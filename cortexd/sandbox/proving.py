"""Finds out what models' sandboxes do on this machine: tries them, once a boot and release of systemd, and keeps it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cortexd.bounded import in_thread
from cortexd.errors import CortexError, InvalidConfig
from cortexd.names import MAX_MODELS
from cortexd.registered import Model
from cortexd.sandbox import attempts, dropins, kept
from cortexd.sandbox.judging import (
    NEED_NAMESPACES,
    OPTIONAL,
    Effect,
    LeftOut,
    Proof,
    Results,
    Row,
    not_in_force,
    table,
)
from cortexd.sandbox.places import where
from cortexd.sandbox.trial import SET_UP, Look, Trials, failure, sandbox_of
from cortexd.scope import Scope
from cortexd.systemd.protocol import Systemd, UnitState
from cortexd.units import files
from cortexd.units.fences import only, without
from cortexd.units.render import Tools, has_namespaces, written_folders

log = logging.getLogger(__name__)

REFUSED = "this machine gives a user's services no namespaces; 'cortexctl doctor' says why"
UNFIT = "systemd cannot set up a unit with it on this machine"
_NAMESPACES = ("PrivateUsers=true", "ProtectSystem=strict")
_ABOUT_NAMESPACES = "Whether there are namespaces"
_SCRIPT = Path(attempts.__file__).resolve()
_SECONDS = 5.0  # for a look at files
_AT_ONCE = 4  # units
_MAX_BLAMED = 50  # lines of drop-ins
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class _Looks:
    """What is tried of a model."""

    name: str
    own: list[str]
    """The lines of the unit's text that make its sandbox."""
    added: list[str]
    """Those of its drop-ins."""
    words: str
    """What the attempts are told."""

    @property
    def lines(self) -> list[str]:
        return [*self.own, *self.added]


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
            found = await in_thread(_SECONDS, lambda: kept.read(self._path))
        except (OSError, TimeoutError, ValueError) as e:
            if not isinstance(e, FileNotFoundError):
                log.warning("%s cannot be read, and is made anew: %s", self._path, e)
            return
        self._tools.namespaces, self._tools.left_out = found.namespaces, found.left_out
        if found.when == self._when():
            self._proofs, self._known = found.proofs, True

    async def know(self) -> None:
        """Know whether there are namespaces, which a unit's text depends on; at once, but for once a boot."""
        if not self._known:
            async with self._looking:
                if not self._known:
                    await self._try_namespaces()

    async def rows(self, model: Model, *, again: bool = False, apart: bool = False) -> list[Row]:
        """The table of a model; tried now where it is not known, or `again`. `apart`: also without each directive alone, so
        that none gets the credit for what another one does; what can be done inside does not depend on it."""
        async with self._looking:
            if again or not self._known:
                await self._try_namespaces()
            proof = await self._prove(model, again=again, apart=apart)
        rows = table(model.spec, proof, self._left_out(model))
        model.sandbox_problem = problem(rows, self._left_out(model))
        return rows

    async def before_start(self, model: Model) -> None:
        """Raise InvalidConfig where the model's sandbox is required and not in force."""
        await self.know()
        if not model.spec.hardening.sandbox_required:
            return
        if has_namespaces(model.spec) and not self._tools.namespaces:
            raise InvalidConfig(f"{model.name}: sandbox_required=yes: {REFUSED}, or set sandbox_required=no")
        rows = await self.rows(model)
        if missing := not_in_force(rows):
            raise InvalidConfig(
                f"{model.name}: sandbox_required=yes: {', '.join(missing)}: not in force here; see 'cortexctl security {model.name}', "
                "or set sandbox_required=no"
            )
        if any(row.effect is Effect.UNKNOWN for row in rows):
            why = next(row.why for row in rows if row.effect is Effect.UNKNOWN)
            said = f"its sandbox cannot be tried: {why}; or set sandbox_required=no"
            raise InvalidConfig(f"{model.name}: sandbox_required=yes: {said}")

    def _left_out(self, model: Model) -> dict[str, str]:
        """Why directives are not in its unit, by their names."""
        found = dict.fromkeys(self._tools.left_out, UNFIT) if not model.spec.hardening.sandbox_required else {}
        if not self._tools.namespaces and has_namespaces(model.spec):
            found |= dict.fromkeys(NEED_NAMESPACES, REFUSED)
        return found

    async def _try_namespaces(self) -> None:
        """With a unit that asks for nothing else, so that no path of a model's is to blame."""
        try:
            words = (json.dumps(await in_thread(_SECONDS, lambda: where(self._scope))),)
            ended = await self._trials.run("namespaces", lambda: Look(_ABOUT_NAMESPACES, _NAMESPACES, _SCRIPT, words))
        except (OSError, TimeoutError, CortexError) as e:
            log.warning("whether this machine gives namespaces to services cannot be tried: %s", e)
            return
        self._known = True
        # A user namespace that is not there although it was asked for is one that systemd went on without.
        results = kept.results(ended.status_text)
        refused = ended.exec_main_status in SET_UP if results is None else results.get("user-namespace") == 0
        before, self._tools.namespaces = self._tools.namespaces, not refused
        if before != self._tools.namespaces:
            log.warning("a user's services get %s on this machine", "namespaces" if not refused else "no namespaces")
            await self.on_namespaces()
        await self._keep()

    async def _prove(self, model: Model, *, again: bool, apart: bool) -> Proof:
        try:
            drop_ins = await self._systemd.drop_ins(model.unit)
            looks = await in_thread(_SECONDS, lambda: self._looks(model, drop_ins))
            key = hashlib.sha256("\n".join(looks.lines).encode("utf-8", "surrogateescape")).hexdigest()
            proof = before = None if again else self._proofs.get(key)
            if proof is None:
                inner, outer = await self._try(looks, looks.lines, ())
                proof = _proof(inner, outer)
                if inner.exec_main_status in SET_UP and proof.failure:
                    if said := await self._blame(looks, proof.failure):
                        return Proof({}, {}, said)
                    return await self._prove(model, again=again, apart=apart)  # with another unit
            if apart and not proof.apart and not proof.failure:
                proof = await self._apart(model, looks, proof)
            if proof is not before and not proof.failure:
                self._proofs[key] = proof
                await self._keep()
            return proof
        except (OSError, TimeoutError, CortexError) as e:
            return Proof({}, {}, str(e) or "the disk does not answer in time")

    def _looks(self, model: Model, drop_ins: tuple[str, ...]) -> _Looks:
        """What is tried of a model; blocking."""
        own = sandbox_of(model, _SCRIPT, self._scope, self._tools)
        words = where(self._scope, model.spec.hardening.umask, written_folders(model.spec, model.plan))
        return _Looks(model.name, own, dropins.lines_of(drop_ins), json.dumps(words))

    async def _try(self, looks: _Looks, *each: Sequence[str]) -> list[UnitState]:
        """Units with these sandboxes, a few at a time."""
        few = asyncio.Semaphore(_AT_ONCE)

        async def one(lines: Sequence[str]) -> UnitState:
            about = f"What the sandbox of model {looks.name} lets through" if lines else "The same without a sandbox"
            async with few:
                return await self._trials.run(looks.name, lambda: Look(about, lines, _SCRIPT, (looks.words,)))

        tasks = [asyncio.create_task(one(lines)) for lines in each]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # each takes its unit with it

    async def _apart(self, model: Model, looks: _Looks, proof: Proof) -> Proof:
        """With what each directive that seems to be in force does by itself: the same sandbox without it; and where another
        one covers it, a sandbox of each of the others."""

        def having(effect: Effect) -> list[str]:
            return [row.directive for row in table(model.spec, proof, self._left_out(model)) if row.effect is effect]

        async def tried(names: list[str], part: Callable[[Sequence[str], str], list[str]]) -> dict[str, Results]:
            states = await self._try(looks, *(part(looks.lines, name) for name in names))
            return {name: kept.results(state.status_text) or {} for name, state in zip(names, states, strict=True)}

        proof = replace(proof, apart=await tried(having(Effect.IN_FORCE), without))
        return replace(proof, alone=await tried(having(Effect.IN_FORCE), only)) if having(Effect.COVERED) else proof

    async def _blame(self, looks: _Looks, said: str) -> str:
        """Why systemd cannot set up a unit, with the line that stops it where that is one of the user's. Empty where it is a
        directive of ours, which is then left out of all models' units but those that require it."""
        (own,) = await self._try(looks, looks.own)
        if own.exec_main_status not in SET_UP:
            lines = list(dict.fromkeys(looks.added))[:_MAX_BLAMED]
            states = await self._try(looks, *([a for a in looks.lines if a != line] for line in lines))
            guilty = [line for line, state in zip(lines, states, strict=True) if kept.results(state.status_text)]
            return (
                f"{said}: '{guilty[0]}' of its drop-ins is to blame" if guilty else f"{said}: its drop-ins are to blame"
            )
        names = [name for name in OPTIONAL if without(looks.own, name) != looks.own]
        states = await self._try(looks, *(without(looks.own, name) for name in names))
        guilty = [name for name, state in zip(names, states, strict=True) if kept.results(state.status_text)]
        if not guilty or guilty[0] in self._tools.left_out:  # required
            return said
        log.warning("systemd cannot set up a unit with %s on this machine; it is left out", guilty[0])
        self._tools.left_out |= {guilty[0]}
        await self.on_namespaces()
        return ""

    def _when(self) -> str:
        """What a look's outcome depends on: boot, manager, and what is tried."""
        try:
            boot = _BOOT.read_text().strip()
        except OSError:
            boot = ""
        return f"{boot} {self._systemd.version} {hashlib.sha256(_SCRIPT.read_bytes()).hexdigest()[:16]}"

    async def _keep(self) -> None:
        while len(self._proofs) > MAX_MODELS:
            del self._proofs[next(iter(self._proofs))]
        try:
            await in_thread(
                _SECONDS, lambda: files.write(self._path, kept.text(self._when(), self._tools, self._proofs))
            )
        except (OSError, TimeoutError) as e:
            log.warning("%s cannot be written: %s", self._path, e or "no answer")


async def _nothing() -> None:
    return None


def problem(rows: list[Row], left_out: LeftOut) -> str:
    """What `status` warns of; empty where all is well. Pure."""
    out = [row.directive for row in rows if row.directive in left_out and row.effect is Effect.NOT_IN_FORCE]
    if out:
        return (
            f"sandbox: {', '.join(out)} are left out: {left_out[out[0]]}; sandbox_required=yes refuses to start instead"
        )
    if unknown := next((row.why for row in rows if row.effect is Effect.UNKNOWN), ""):
        return f"sandbox: what of it is in force is not known: {unknown}"
    missing = not_in_force(rows)
    return f"sandbox: {', '.join(missing)}: not in force on this machine" if missing else ""


def _proof(sandbox: UnitState, control: UnitState) -> Proof:
    inner, outer = kept.results(sandbox.status_text), kept.results(control.status_text)
    if inner is None:
        return Proof({}, {}, failure(sandbox))
    if outer is None:
        return Proof({}, {}, f"without a sandbox, {failure(control)}")
    return Proof(inner, outer)
