"""Secrets of models: variables for the server that no setting, unit, event or property ever shows.

One file per model is the whole truth, in the grammar of systemd's EnvironmentFile= (systemd.exec(5)), which every unit
names. systemd reads it anew for each start, outside the sandbox; a shell can read it, too: `. FILE`. Nothing is kept in
memory. All functions block, on small files of our own.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex, token_urlsafe

from cortexd import kinds, owned
from cortexd.bounded import on_local_disk
from cortexd.errors import InvalidConfig, NoSuchSecret, StoreFailed

MAX_VALUE = 64 * 1024
"""Bytes of one value; the kernel takes 128 KiB for one variable (execve(2))."""
_MAX_FILE = 512 * 1024  # bytes; the kernel takes arguments and environment together up to a quarter of the stack limit
_GENERATED_BYTES = 32

_FILE, _NEW = "environment", ".environment.new"
_KEY = re.compile(r"[A-Z_][A-Z0-9_]{0,127}")
_REVISION = re.compile(r"# revision ([0-9a-f]{16})")
_LINE = re.compile(r'([A-Z_][A-Z0-9_]*)="((?:[^"\\$`]|\\["\\$`])*)"')
_ESCAPED = re.compile(r'\\(["\\$`])')
_TO_ESCAPE = re.compile(r'["\\$`]')


@dataclass(frozen=True, slots=True)
class Known:
    """What may be known of a model's secrets without reading a value."""

    names: tuple[str, ...] = ()
    """Sorted."""
    revision: str = ""
    """Another one after every change; empty where there are none. Drawn at random: it says nothing about the values."""


NO_SECRETS = Known()


def check_key(key: str, taken: Mapping[str, str] | Collection[str]) -> None:
    """Refuse a variable that no secret may be: InvalidConfig. `taken`: those that cortexd gives the server itself."""
    if not _KEY.fullmatch(key):
        raise InvalidConfig(f"key={key[:80]!r}: use A to Z, 0 to 9 and _, such as HF_TOKEN, and no digit in front")
    if kinds.is_systemds_variable(key):
        raise InvalidConfig(f"key={key!r}: is systemd's own; use another name")
    if kinds.is_loaders_variable(key):
        raise InvalidConfig(f"key={key!r}: changes which code the server runs and is no secret; use the setting env")
    if key in taken:
        raise InvalidConfig(f"key={key!r}: is given by cortexd itself; use the settings ('cortexctl set')")


def check_value(value: bytes) -> str:
    """The value as text. Raises InvalidConfig, which never shows it."""
    if not value:
        raise InvalidConfig("value: is empty; 'cortexctl secret unset' removes a secret")
    if len(value) > MAX_VALUE:
        raise InvalidConfig(f"value: is longer than the {MAX_VALUE} bytes that are possible; give a shorter one")
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise InvalidConfig("value: is not UTF-8; encode it, as with base64") from None
    if kinds.has_control(text):
        raise InvalidConfig("value: has a newline or another control character; encode it, as with base64")
    return text


def generate() -> bytes:
    """A key of 256 random bits, in letters that need no quoting anywhere."""
    return token_urlsafe(_GENERATED_BYTES).encode()


class Secrets:
    """The secrets below one folder. Every method that finds something there that is not as we wrote it raises StoreFailed
    with the path and the remedy, and follows no link."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, model: str) -> Path:
        """The model's file, whether it is there or not."""
        return self._folder / model / _FILE

    def on_local_disk(self) -> bool:
        """Whether they lie where a read takes no time worth a thread, as the folder around them does, which is always there."""
        return on_local_disk(self._folder.parent)

    def known(self, model: str) -> Known:
        """Names and revision."""
        revision, values = self._read(model)
        return Known(tuple(sorted(values)), revision)

    def names(self, model: str) -> tuple[str, ...]:
        """The variables that are secrets of the model's."""
        return self.known(model).names

    def value(self, model: str, variable: str) -> str | None:
        """One secret's value; None where there is none."""
        return self._read(model)[1].get(variable)

    def set(self, model: str, key: str, value: bytes) -> bool:
        """Set a secret; returns whether anything changed. The key has passed check_key; raises InvalidConfig for a value
        that cannot be one."""
        text = check_value(value)
        _, values = self._read(model)
        if values.get(key) == text:
            return False
        self._write(model, {**values, key: text})
        return True

    def check_has(self, model: str, key: str) -> None:
        """Raise NoSuchSecret where there is none."""
        if key not in self._read(model)[1]:
            raise NoSuchSecret(
                f"model {model!r} has no secret {key[:80]!r}; 'cortexctl secret list {model}' shows them"
            )

    def remove(self, model: str, key: str) -> None:
        """Remove a secret, if it is there."""
        _, values = self._read(model)
        if key not in values:
            return
        del values[key]
        if values:
            self._write(model, values)
        else:
            self.forget(model)

    def forget(self, model: str) -> None:
        """Delete all secrets of a model, and its folder where nobody else has put anything there."""
        with self._opened(model) as folder:
            if folder is None:
                return
            for name in (_NEW, _FILE):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
            os.fsync(folder)
        with suppress(OSError):
            self.path(model).parent.rmdir()

    def models(self, without: Container[str] = ()) -> list[str]:
        """Everything that has secrets here, registered or not, but for these."""
        try:
            folders = [each for each in self._folder.iterdir() if each.name not in without]
            return sorted(each.name for each in folders if (each / _FILE).exists())
        except OSError:
            return []

    @contextmanager
    def _opened(self, model: str, *, make: bool = False) -> Iterator[int | None]:
        """The model's folder as a descriptor, checked; None where there is none and none is to be made."""
        with ExitStack() as closing:
            try:
                folder: int | None = closing.enter_context(owned.opened(self._folder, model, make=make))
            except FileNotFoundError:
                folder = None
            except OSError as e:
                raise self._unusable(model, e) from None
            try:
                yield folder
            except OSError as e:
                raise self._unusable(model, e) from None

    def _unusable(self, model: str, error: OSError) -> StoreFailed:
        link = error.errno in (errno.ELOOP, errno.ENOTDIR)
        reason = "is a link, or not what belongs there" if link else error.strerror
        return StoreFailed(
            f"{self.path(model)}: {reason}; check it and its folders, or move it away and set its secrets again"
        )

    def _read(self, model: str) -> tuple[str, dict[str, str]]:
        with self._opened(model) as folder:
            if folder is None:
                return "", {}
            flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

            def opener(path: str, mode: int) -> int:
                return os.open(path, mode | flags, dir_fd=folder)

            try:
                with open(_FILE, "rb", buffering=0, opener=opener) as file:
                    status = os.fstat(file.fileno())
                    ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid()
                    data = bytearray(min(status.st_size, _MAX_FILE) + 1 if ours else 0)
                    del data[file.readinto(data) or 0 :]
            except FileNotFoundError:
                return "", {}
        try:
            found = _parse(data) if len(data) <= _MAX_FILE else None
        finally:
            data[:] = bytes(len(data))  # the next to have this memory may not come soon
        if found is None:
            raise StoreFailed(f"{self.path(model)} is not as cortexd wrote it; delete it and set the secrets again")
        return found

    def _write(self, model: str, values: Mapping[str, str]) -> None:
        """All or nothing, whenever we are killed."""
        text = f"# revision {token_hex(8)}\n" + "".join(f"{key}={_quoted(values[key])}\n" for key in sorted(values))
        data = text.encode()
        if len(data) > _MAX_FILE:
            raise InvalidConfig(f"value: the secrets of {model} would be longer than {_MAX_FILE // 1024} KiB together")
        with self._opened(model, make=True) as folder:
            assert folder is not None
            with suppress(FileNotFoundError):
                os.unlink(_NEW, dir_fd=folder)  # of a daemon that was killed
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(_NEW, flags, 0o600, dir_fd=folder), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(_NEW, _FILE, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)


def _quoted(value: str) -> str:
    """In double quotes, where systemd and a shell take a backslash before these four for an escape and before no other."""
    return '"' + _TO_ESCAPE.sub(lambda match: "\\" + match[0], value) + '"'


def _parse(data: bytearray) -> tuple[str, dict[str, str]] | None:
    """Revision and values of a file that we wrote; None for any other."""
    try:
        lines = [line.decode() for line in data.split(b"\n")]
    except UnicodeDecodeError:
        return None
    if len(lines) > 1 and not lines[-1]:
        del lines[-1]
    revision = _REVISION.fullmatch(lines[0])
    matches = [_LINE.fullmatch(line) for line in lines[1:]]
    if revision is None:
        return None
    values: dict[str, str] = {}
    for match in matches:
        if match is None:
            return None
        values[match[1]] = _ESCAPED.sub(r"\1", match[2])
    return revision[1], values
