"""What becomes of models whose backend's file is changed, breaks or goes away while they are registered.

What a file says is taken over at a start, a change of settings and the daemon's start, never by itself: until then the
unit file is as it was, and so are the runs that systemd makes of it. A model whose file cannot be used is kept: it can be
watched and stopped, and its unit file stays as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from cortexd.backends import Backend, backend_of
from cortexd.backends.standin import StandIn
from cortexd.bounded import in_thread
from cortexd.errors import InvalidConfig
from cortexd.kinds import Value
from cortexd.model import build_spec
from cortexd.names import unit_name
from cortexd.registered import Definition, Model
from cortexd.scope import Scope
from cortexd.secrets import Known
from cortexd.units import files
from cortexd.units.render import probe_address

NO_ANSWER = "path: its file system does not answer; check the mount"
_SECONDS = 2.0
"""For a look at a model's files, which may lie where nobody answers."""

Define = Callable[[Model], Definition]
"""Makes a model's definition anew from its settings. Raises InvalidConfig."""


def stand_in(name: str, explicit: Mapping[str, Value], secrets: Known, scope: Scope) -> Definition:
    """Of a model whose backend cannot be used now: its unit file, as it lies there, is what it is. Raises ValueError
    where it has no address to be watched at."""
    spec = build_spec(name, explicit, StandIn().defaults(0))
    probe_address(spec.host)
    text = files.read(scope.unit_folder / unit_name(name))
    return Definition(explicit, spec, StandIn(), StandIn().plan(spec, scope), text, secrets)


def renewed(model: Model, define: Define, scope: Scope) -> Definition:
    """Its definition, made anew where its backend's file is not what it was; blocking. Raises InvalidConfig."""
    unchanged = backend_of(model.spec.backend, scope) is model.definition.backend
    return model.definition if unchanged else define(model)


async def see(models: Iterable[Model], define: Define, scope: Scope) -> list[Model]:
    """See whether backend files were changed or broken, and note it on their models, which are returned."""
    models = list(models)
    names = {model.spec.backend for model in models}
    current = await asyncio.to_thread(lambda: {name: _backend_or_problem(name, scope) for name in names})
    # Each may have another backend by now.
    found = [(model, current.get(model.spec.backend)) for model in models]
    differ = [
        (model, backend)
        for model, backend in found
        if backend and (backend is not model.definition.backend or model.backend_problem or model.backend_changed)
    ]
    await asyncio.gather(*(_note(model, backend, define) for model, backend in differ))
    return [model for model, _ in differ]


async def _note(model: Model, found: Backend | str, define: Define) -> None:
    old, new, problem = model.definition, model.definition, ""
    if found is not old.backend:
        try:
            if isinstance(found, str):
                raise InvalidConfig(found)
            new = await in_thread(_SECONDS, partial(define, model))
        except TimeoutError:
            problem = NO_ANSWER
        except InvalidConfig as e:
            problem = str(e)
    if model.definition is not old:  # it was made anew meanwhile
        return
    model.backend_problem, model.backend_changed = problem, new.text != old.text
    if not model.backend_changed:
        model.definition = new


def _backend_or_problem(name: str, scope: Scope) -> Backend | str:
    try:
        return backend_of(name, scope)
    except InvalidConfig as e:
        return str(e)
