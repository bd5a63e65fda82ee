"""Waiting until models are as they are wanted, by what the daemon says of them: nothing is polled, and a daemon that is
restarted meanwhile does not end it."""

from __future__ import annotations

import time

from cortexctl.context import MODEL_CHANGES, OWNER_CHANGES, Context
from cortexctl.errors import no_such_model
from cortexctl.progress import TICK, Progress
from cortexd.names import model_path

TYPE_CHECKING = False  # see cortexctl.bus
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cortexctl.context import Info


def watch(context: Context) -> None:
    """Subscribe, which has to come before the first look, so that no change falls between them."""
    context.bus.watch(MODEL_CHANGES)
    context.bus.watch(OWNER_CHANGES)


def settled(
    context: Context,
    progress: Progress,
    found: Sequence[Info],
    is_settled: Callable[[Info], bool],
    deadline: float | None = None,
) -> Iterator[Info]:
    """Each of the models that were `found` once `is_settled` holds; those of which it does not at `deadline` (of
    time.monotonic()) come last, as they are then. Who is gone is reported.

    A daemon that restarts sends no changes for what happened meanwhile, so its coming and going is a reason to look again; to
    look has the bus start it, if it knows how.
    """
    bus, waiting = context.bus, {model_path(info["Name"]): info for info in found}
    while True:
        for path in [path for path, info in waiting.items() if is_settled(info)]:
            progress.clear()
            yield waiting.pop(path)
        if not waiting:
            return
        left = None if deadline is None else deadline - time.monotonic()
        progress.draw({path: info["Name"] for path, info in waiting.items()})
        signal = bus.next_signal(left if not progress.shown else min(TICK, left or TICK))
        if signal is None:
            if deadline is not None and time.monotonic() >= deadline:
                progress.clear()
                yield from waiting.values()
                return
        elif signal.member == "NameOwnerChanged":
            fresh, unknown = context.lookup([info["Name"] for info in waiting.values()])
            waiting = {model_path(info["Name"]): info for info in fresh}
            for name in unknown:
                context.fail(no_such_model(name), name)
        elif signal.path in waiting:
            waiting[signal.path].update(signal.body[1])
            progress.note(signal.path, signal.body[1])
