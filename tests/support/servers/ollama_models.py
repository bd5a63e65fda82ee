"""The models of Ollama's stand-in: names, the store on disk, and what is loaded."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

FOREVER = timedelta(days=365 * 100)
_PART = {
    "host": r"\w[\w.:-]{0,349}",
    "namespace": r"\w[\w-]{0,79}",
    "model": r"\w[\w.-]{0,79}",
    "tag": r"\w[\w.-]{0,79}",
}


def keep_alive_of(value: object) -> timedelta | None:
    """Seconds or a duration such as 5m; negative is for ever, nothing the server's own. Raises ValueError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"invalid keep_alive {value!r}")
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)(ms|s|m|h)?", str(value))
    if not match:
        raise ValueError(f"time: invalid duration {value!r}")
    scale = {"ms": 0.001, "s": 1, None: 1, "m": 60, "h": 3600}[match[2]]
    seconds = float(match[1]) * scale
    return FOREVER if seconds < 0 else timedelta(seconds=seconds)


@dataclass(frozen=True)
class Name:
    """A model's full name."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Name | None:
        """With the defaults for what is left out; None if it is none."""
        head, _, last = text.rpartition("/")
        model, sign, tag = last.partition(":")
        host, slash, namespace = head.rpartition("/")
        found = cls(
            host if slash else "registry.ollama.ai", namespace if head else "library", model, tag if sign else "latest"
        )
        for part, pattern in _PART.items():
            if not re.fullmatch(pattern, getattr(found, part), re.ASCII):
                return None
        return found

    def __str__(self) -> str:
        """As short as it can be."""
        prefix = "" if self.namespace == "library" else f"{self.namespace}/"
        if self.host != "registry.ollama.ai":
            prefix = f"{self.host}/{self.namespace}/"
        return f"{prefix}{self.model}:{self.tag}"


@dataclass
class Loaded:
    """A model in memory, and the process that has it there."""

    runner: subprocess.Popen[bytes]
    size: int
    digest: str
    context: int
    expires: datetime


@dataclass
class Store:
    """Manifests and blobs, as the real one lays them out."""

    folder: Path

    def blob(self, digest: str) -> Path | None:
        """Where a blob lies, or None for what is no digest."""
        found = re.fullmatch(r"sha256[:-]([0-9a-fA-F]{64})", digest)
        return self.folder / "blobs" / f"sha256-{found[1]}" if found else None

    def manifest(self, name: Name) -> Path:
        return self.folder / "manifests" / name.host / name.namespace / name.model / name.tag

    def find(self, text: str) -> tuple[Name, dict[str, Any]] | None:
        """A model that is there; capitals do not count."""
        name = Name.parse(text)
        for path in (self.folder / "manifests").glob("*/*/*/*") if name else ():
            if str(Name(*path.parts[-4:])).lower() == str(name).lower():
                return Name(*path.parts[-4:]), json.loads(path.read_text())
        return None

    def all(self) -> Iterator[tuple[Name, dict[str, Any]]]:
        for path in sorted((self.folder / "manifests").glob("*/*/*/*")):
            yield Name(*path.parts[-4:]), json.loads(path.read_text())

    def write(self, name: Name, digest: str, size: int) -> None:
        path = self.manifest(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"layers": [{"digest": digest, "size": size}]}))

    def add_blob(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        part = self.folder / "blobs" / f"sha256-{digest}.part"
        part.write_bytes(data)
        part.replace(part.with_suffix(""))
        return f"sha256:{digest}"

    def prune(self) -> None:
        """Away with blobs that no manifest names."""
        used = {layer["digest"].replace(":", "-") for _, manifest in self.all() for layer in manifest["layers"]}
        for path in (self.folder / "blobs").iterdir():
            if path.name not in used:
                path.unlink()


@dataclass
class Ollama:
    """What the server knows."""

    store: Store
    script: dict[str, Any]
    context: int
    keep_alive: timedelta
    most: int
    loaded: dict[Name, Loaded] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def gate(self, name: str) -> None:
        """Wait there, if there is such a gate."""
        if self.script.get(name):
            Path(self.script[name]).read_text()

    def running(self) -> dict[Name, Loaded]:
        """Models whose runner lives and whose time has not come."""
        with self.lock:
            for name, model in list(self.loaded.items()):
                if model.runner.poll() is not None or model.expires < datetime.now(UTC):
                    self.unload(name)
            return dict(self.loaded)

    def unload(self, name: Name) -> None:
        model = self.loaded.pop(name, None)
        if model:
            model.runner.kill()
            model.runner.wait()

    def load(self, name: Name, manifest: dict[str, Any], keep: timedelta | None, context: int | None) -> str:
        """Load it, unless it is; empty, or what went wrong."""
        keep = self.keep_alive if keep is None else keep
        expires = datetime.now(UTC) + keep
        with self.lock:
            found = self.running().get(name)
            if found and found.context == (context or self.context):
                found.expires = expires
                return ""
        self.gate("load_gate")
        if self.script.get("load_error"):
            return str(self.script["load_error"])
        with self.lock:
            self.unload(name)
            while len(self.loaded) >= self.most:
                self.unload(next(iter(self.loaded)))
            layer = manifest["layers"][0]
            runner = subprocess.Popen(["/bin/sleep", "infinity"])
            self.loaded[name] = Loaded(runner, layer["size"], layer["digest"], context or self.context, expires)
        return ""
