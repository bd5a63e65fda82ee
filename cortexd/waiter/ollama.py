"""Has an Ollama server load one model and keep it: its API is the only way to tell it which (its docs/api.md).

Its health endpoint answers before it has any model; ready is when /api/ps lists the one that is wanted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cortexd.waiter.http import Exchange, Server
from cortexd.waiter.waiting import POLL
from cortexd.waiter.watch import GaveUp, Watch

QUICK = 30.0
"""Seconds that an answer may take where the server has nothing to do for it; others take what the start has."""

_PIECE = 1 << 20
_MAX_ANSWER = 16 << 20  # /api/show of a model with a long licence and all its tensors
_MAX_LINE = 1 << 16
_MAX_LAYERS = 1000
_MAX_SHOWN = 300


def load(watch: Watch, server: Server, model: str, file: Path | None) -> None:
    """Return when `model` is loaded: pulled if the server lacks it, or made of the GGUF `file`. Raises GaveUp."""
    api = _Api(watch, server)
    if file:
        _make(watch, api, model, file)
    elif api.show(model) is None:
        _pull(watch, api, model)
    watch.doing(f"Loading {model}")
    watch.progress()
    _preload(api, model)
    while not api.lists(model):
        watch.pause(POLL)


def _pull(watch: Watch, api: _Api, model: str) -> None:
    """Have it downloaded. The server resumes what an earlier start left (it must not prune: OLLAMA_NOPRUNE)."""
    watch.doing(f"Pulling {model}")
    layers: dict[str, tuple[int, int]] = {}
    known: set[str] = set()
    for told in api.stream("/api/pull", {"model": model}, f"cannot pull {model}"):
        status, digest = str(told.get("status", "")), str(told.get("digest", ""))
        done, total = _count(told.get("completed")), _count(told.get("total"))
        if len(known) < _MAX_LAYERS and status not in known:
            known.add(status)
            watch.progress()
        if digest and total and (digest in layers or len(layers) < _MAX_LAYERS):
            if done > layers.get(digest, (0, 0))[0]:
                watch.progress()
            layers[digest] = (done, total)
            share = sum(d for d, _ in layers.values()) / sum(t for _, t in layers.values())
            watch.doing(f"Pulling {model}: {min(share, 1):.0%}".replace("%", " %"))


def _make(watch: Watch, api: _Api, model: str, file: Path) -> None:
    """Have it made of the file, unless it is that already: Ollama names what it keeps by its SHA-256."""
    digest = _digest(watch, file)
    blob = f"sha256:{digest}"
    if f"sha256-{digest}" in (api.show(model) or ""):
        return
    if api.status("HEAD", f"/api/blobs/{blob}") != 200:
        _upload(watch, api, blob, file)
    watch.doing(f"Making {model} of {file.name}")
    for _ in api.stream("/api/create", {"model": model, "files": {file.name: blob}}, f"cannot make {model} of {file}"):
        watch.progress()


def _digest(watch: Watch, file: Path) -> str:
    found = hashlib.sha256()
    for piece in _pieces(watch, file, f"Reading {file.name}"):
        found.update(piece)
    return found.hexdigest()


def _upload(watch: Watch, api: _Api, blob: str, file: Path) -> None:
    with api.exchange() as exchange:
        size = file.stat().st_size
        pieces = _pieces(watch, file, f"Copying {file.name}")
        status = exchange.ask("POST", f"/api/blobs/{blob}", pieces, size, "application/octet-stream")
        if status >= 400:
            raise GaveUp(f"Ollama cannot take {file}: {_reason(status, exchange.read(_MAX_LINE))}")


def _pieces(watch: Watch, file: Path, what: str) -> Iterator[bytes]:
    """The file; each piece of it is progress."""
    try:
        with file.open("rb") as stream:
            size, read = file.stat().st_size, 0
            while piece := stream.read(_PIECE):
                read += len(piece)
                watch.doing(f"{what}: {read * 100 // max(size, read)} %")
                watch.progress()
                watch.pause(0)
                yield piece
    except OSError as e:
        raise GaveUp(f"{file} cannot be read: {e.strerror or e}") from None


def _preload(api: _Api, model: str) -> None:
    """An empty request loads a model, for ever: `keep_alive` of -1. One for embeddings generates nothing."""
    wanted = {"model": model, "keep_alive": -1}
    status, answer = api.post("/api/generate", {**wanted, "stream": False})
    if status == 400 and b"does not support generate" in answer:
        status, answer = api.post("/api/embed", {**wanted, "input": ""})
    if status >= 400:
        raise GaveUp(f"Ollama cannot load {model}: {_reason(status, answer)}")


class _Api:
    """Requests to the server; what goes wrong with them is a reason to give up."""

    def __init__(self, watch: Watch, server: Server) -> None:
        self._watch, self._server = watch, server

    def exchange(self, timeout: float | None = None) -> _Exchange:
        return _Exchange(self._server, timeout=timeout, pause=self._watch.pause)

    def status(self, method: str, path: str) -> int:
        with self.exchange(QUICK) as exchange:
            return exchange.ask(method, path)

    def post(self, path: str, body: Mapping[str, object], timeout: float | None = None) -> tuple[int, bytes]:
        data = json.dumps(body).encode()
        with self.exchange(timeout) as exchange:
            return exchange.ask("POST", path, [data], len(data)), exchange.read(_MAX_ANSWER)

    def stream(self, path: str, body: Mapping[str, object], failure: str) -> Iterator[dict[str, Any]]:
        """Lines of JSON, the last of which has to be a success."""
        data = json.dumps(body).encode()
        status = ""
        with self.exchange() as exchange:
            if (code := exchange.ask("POST", path, [data], len(data))) >= 400:
                raise GaveUp(f"Ollama {failure}: {_reason(code, exchange.read(_MAX_LINE))}")
            for line in exchange.lines(_MAX_LINE):
                told = _object(line)
                if "error" in told:
                    raise GaveUp(f"Ollama {failure}: {_plain(told['error'])}")
                status = str(told.get("status", ""))
                yield told
        if status != "success":
            raise GaveUp(f"Ollama {failure}: its answer ends after {_plain(status)!r}")

    def show(self, model: str) -> str | None:
        """The Modelfile of a model, which names its blob; None if the server has no such model."""
        status, answer = self.post("/api/show", {"model": model}, QUICK)
        if status == 404:
            return None
        if status >= 400:
            raise GaveUp(f"Ollama cannot show {model}: {_reason(status, answer)}")
        return str(_object(answer).get("modelfile", ""))

    def lists(self, model: str) -> bool:
        """Whether it is loaded."""
        with self.exchange(QUICK) as exchange:
            status = exchange.ask("GET", "/api/ps")
            found = _object(exchange.read(_MAX_ANSWER)).get("models") if status == 200 else None
        names = {str(row.get(key)) for row in found or () if isinstance(row, dict) for key in ("name", "model")}
        return _full(model) in {_full(name) for name in names}


class _Exchange(Exchange):
    """A failed request is the server's failure, by now: it has answered before."""

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        super().__exit__(kind, error, at)
        if isinstance(error, OSError):
            raise GaveUp(f"Ollama does not answer as it should: {error.strerror or error}") from None


def _full(name: str) -> str:
    """A name as /api/ps shows it: its own registry and library left out, and the tag said. Capitals do not count."""
    plain = name.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return plain if ":" in plain.rpartition("/")[2] else f"{plain}:latest"


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise GaveUp("Ollama does not answer as it should: no JSON object")
    return found


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _reason(status: int, answer: bytes) -> str:
    """What an error says of itself."""
    try:
        return _plain(_object(answer)["error"])
    except (GaveUp, KeyError):
        return f"it answers {status}"


def _plain(text: object) -> str:
    """One line that a terminal may show."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[:_MAX_SHOWN])
    return line.strip()
