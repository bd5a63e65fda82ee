"""The models' own past in the audit log: what a former model of a name left there is another's."""

from __future__ import annotations

from collections.abc import Sequence

from cortexd.events import Event
from cortexd.store import EventQuery, Store

_BEGIN = "registered"


async def history(store: Store, name: str, kinds: Sequence[str], limit: int) -> list[Event]:
    """The last `limit` events of these kinds since the model of this name was registered, oldest first."""
    events = await store.events(EventQuery(models=[name], kinds=[*kinds, _BEGIN], limit=limit))
    begins = [number for number, event in enumerate(events) if event.kind == _BEGIN]
    return events[begins[-1] + 1 :] if begins else list(events)


async def histories(
    store: Store, kinds: Sequence[str], limit: int, *, since: Sequence[str] = ()
) -> dict[str, list[Event]]:
    """The same of every registered model, from its last event of the kinds `since` on where there is one; nothing of models that
    have none. One query, however many models there are."""
    return await store.latest(kinds, [*since, _BEGIN], limit)
