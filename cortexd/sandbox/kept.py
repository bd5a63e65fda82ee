"""What was found out, as the text of a file of ours. What models have in common stands there once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cortexd.bounded import unlinked
from cortexd.sandbox.judging import OPTIONAL, Proof, Results
from cortexd.units.render import Tools

_MAX_FILE = 64 << 20  # bytes; 4096 models that have nothing in common


@dataclass(frozen=True, slots=True)
class Kept:
    """What a file says."""

    when: str
    """See proving: another one is of another boot."""
    namespaces: bool
    left_out: frozenset[str]
    proofs: dict[str, Proof]


def results(said: str) -> Results | None:
    """What the attempts said, or None for anything else. Pure."""
    if not re.fullmatch(r"[a-z-]+:\d{1,4}( [a-z-]+:\d{1,4})*", said):
        return None
    return {name: int(number) for name, number in (word.split(":") for word in said.split())}


def text(when: str, tools: Tools, proofs: Mapping[str, Proof]) -> str:
    """The file's. Pure."""
    places: dict[str, int] = {}

    def place(found: Results) -> int:
        return places.setdefault(" ".join(f"{name}:{number}" for name, number in found.items()), len(places))

    def places_of(each: Mapping[str, Results]) -> dict[str, int]:
        return {name: place(found) for name, found in each.items()}

    rows = {
        key: [place(p.sandbox), place(p.control), places_of(p.apart), places_of(p.alone)] for key, p in proofs.items()
    }
    whole = {"when": when, "namespaces": tools.namespaces, "left_out": sorted(tools.left_out)}
    return json.dumps({**whole, "proofs": rows, "said": [*places]}) + "\n"


def read(path: Path) -> Kept:
    """Blocking. Raises OSError, and ValueError for what we did not write."""
    with open(path, "rb", opener=unlinked) as file:
        data = file.read(_MAX_FILE + 1)
    try:
        return _kept(json.loads(data))
    except (RecursionError, KeyError, TypeError, IndexError, AttributeError):
        raise ValueError("it is not what cortexd wrote") from None


def _kept(whole: Any) -> Kept:
    said = [results(found) if found else {} for found in whole["said"]]
    when, namespaces, left_out = whole["when"], whole["namespaces"], frozenset(whole["left_out"])
    if None in said or not isinstance(when, str) or not isinstance(namespaces, bool) or not left_out <= {*OPTIONAL}:
        raise ValueError("it is not what cortexd wrote")

    def at(place: object) -> Results:
        if not isinstance(place, int) or not 0 <= place < len(said):
            raise ValueError("it is not what cortexd wrote")
        return said[place] or {}

    def each(places: dict[object, object]) -> dict[str, Results]:
        return {str(name): at(place) for name, place in places.items()}

    proofs = {
        str(key): Proof(at(sandbox), at(control), apart=each(apart), alone=each(alone))
        for key, (sandbox, control, apart, alone) in whole["proofs"].items()
    }
    return Kept(when, namespaces, left_out, proofs)
