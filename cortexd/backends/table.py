"""A TOML table that is read key by key: every fault is one InvalidConfig that names file, key, value and remedy. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from cortexd.errors import InvalidConfig
from cortexd.kinds import TEXT

_MAX_ITEMS = 200
"""Words of a command, variables, folders: more is no description of a server."""
_MAX_SHOWN = 80


class Table:
    """A TOML table that is taken apart key by key, so that what is left over is unknown."""

    def __init__(self, table: dict[str, Any], file: str, prefix: str = "") -> None:
        self.rest, self.file, self._prefix = dict(table), file, prefix
        self._known: list[str] = []

    def wrong(self, key: str, value: object, why: str) -> InvalidConfig:
        """The error of one key."""
        shown = repr(value)
        shown = shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "…"
        key = key if key.isprintable() else repr(key)
        return InvalidConfig(f"{self.file}: {self._prefix}{key}={shown}: {why}")

    def take(self, key: str, default: Any = None) -> Any:
        """The raw value; without a default it has to be there."""
        self._known.append(key)
        if key in self.rest:
            return self.rest.pop(key)
        if default is None:
            raise InvalidConfig(f"{self.file}: {self._prefix}{key}: is missing; add it (docs/backends.md says how)")
        return default

    def checked(self, key: str, value: object, check: Callable[[str], None]) -> str:
        """A text that is one, of bounded length, without control characters, and right for `check`."""
        if not isinstance(value, str):
            raise self.wrong(key, value, "must be text; write it in quotes")
        try:
            text = str(TEXT.parse(value))
            check(text)
        except ValueError as e:
            raise self.wrong(key, value, str(e)) from None
        return text

    def text(self, key: str, default: str | None = None, check: Callable[[str], None] = lambda text: None) -> str:
        """One text; the default is not checked."""
        value = self.take(key, default)
        return self.checked(key, value, check if value != default else lambda text: None)

    def items(self, key: str, default: Sequence[Any] | None = None) -> list[Any]:
        """A list of anything, of bounded length."""
        value = self.take(key, default)
        if not isinstance(value, list | tuple):
            raise self.wrong(key, value, "must be a list; write it in square brackets")
        if len(value) > _MAX_ITEMS:
            raise self.wrong(key, value, f"has {len(value)} items, at most {_MAX_ITEMS} are possible")
        return list(value)

    def texts(
        self, key: str, check: Callable[[str], None], default: Sequence[str] | None = (), least: int = 0
    ) -> tuple[str, ...]:
        """A list of texts."""
        found = tuple(self.checked(key, value, check) for value in self.items(key, default))
        if len(found) < least:
            raise self.wrong(key, list(found), "is empty; name one at least, or leave the key out")
        return found

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number within bounds; the default, where it is not there, may lie outside."""
        if key not in self.rest:
            return int(self.take(key, default))
        value = self.take(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(key, value, f"must be a whole number from {low} to {high}")
        return value

    def boolean(self, key: str) -> bool:
        """true, or false where it is not there."""
        value = self.take(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "must be true or false, without quotes")
        return value

    def inner(self, key: str) -> Table | None:
        """A table in this one; None where it is not there."""
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, value, f"must be a table; write [{self._prefix}{key}] above its keys")
        if len(value) > _MAX_ITEMS:
            raise self.wrong(key, value, f"has {len(value)} keys, at most {_MAX_ITEMS} are possible")
        return Table(value, self.file, f"{self._prefix}{key}.") if value else None

    def pairs(self, key: str, check_name: Callable[[str], None], check: Callable[[str], None]) -> dict[str, str]:
        """A table of texts whose keys are free."""
        inner = self.inner(key)
        if inner is None:
            return {}
        found = {}
        for name, value in inner.rest.items():
            inner.checked(name[:_MAX_SHOWN], name, check_name)
            found[name] = inner.checked(name, value, check)
        return found

    def end(self) -> None:
        """Refuse keys that nobody took."""
        for key in self.rest:
            close = difflib.get_close_matches(key, self._known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(self._known)}"
            raise InvalidConfig(f"{self.file}: {self._prefix}{key[:_MAX_SHOWN]!r} is no key of this form; {hint}")
