"""A stand-in for `ollama`: its command line, variables, start and HTTP API (docs/api.md, envconfig/config.go, August 2026).

What the real one would only warn of is an error here, so that a test sees it. `ollama.json` beside the program may say:

    {"registry": {"llama3:8b": 1000},   models that can be pulled, with their size in bytes
     "pull_error": "…",                 what a pull ends with instead
     "pull_gate": "FIFO",               a pull stops in its middle until somebody writes there
     "load_error": "…",                 what loading a model ends with
     "load_gate": "FIFO",               loading takes until somebody writes there
     "embeds": ["nomic-embed-text"],    models that generate nothing
     "tell": "FILE"}                    argv, environment and process id are written there at the start

Standard library only: it is run as a program of its own inside a model's sandbox (tests/support/standins.py).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any, Never

from tests.support.servers.ollama_models import FOREVER, Name, Ollama, Store, keep_alive_of

VERSION = "0.12.99"
VARIABLES = {"OLLAMA_HOST", "OLLAMA_CONTEXT_LENGTH", "OLLAMA_KEEP_ALIVE", "OLLAMA_MAX_LOADED_MODELS", "OLLAMA_MODELS", "OLLAMA_NOPRUNE",
             "OLLAMA_LOAD_TIMEOUT", "OLLAMA_NUM_PARALLEL", "OLLAMA_FLASH_ATTENTION", "OLLAMA_DEBUG"}  # fmt: skip


def fail(message: str) -> Never:
    """As cobra ends: the message, and status 1."""
    print(f"Error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def listen_address(text: str) -> tuple[str, int]:
    """OLLAMA_HOST as the real one reads it, but for what it would replace by a default with a warning."""
    text = text.strip().strip("\"'").strip()
    scheme, sign, rest = text.partition("://")
    if not sign:
        scheme, rest = "http", text
    default = {"http": 80, "https": 443}.get(scheme, 11434) if sign else 11434
    rest = rest.split("/")[0]
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", rest)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    elif rest.count(":") == 1:
        host, port = rest.split(":")
    else:
        host, port = rest, None
    if port is not None and not (port.isdecimal() and int(port) <= 65535):
        fail(f"invalid port in OLLAMA_HOST={text!r}")
    return host or "127.0.0.1", int(port) if port is not None else default


class Handler(BaseHTTPRequestHandler):
    """The API."""

    protocol_version = "HTTP/1.1"
    ollama: Ollama

    # In and out

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, value: object = None, kind: str = "application/json; charset=utf-8") -> None:
        data = b"" if value is None else value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def stream(self, values: Iterator[dict[str, Any]]) -> None:
        """Line by line, in chunks; an error that comes first has a status of its own."""
        first = next(values)
        if "error" in first:
            self.answer(int(first.pop("status", 500)), first)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for value in chain([first], values):
            value.pop("status", None) if "error" in value else None
            data = json.dumps(value).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """As gin logs: to standard error."""
        print(f'[GIN] {self.command} "{self.path}"', file=sys.stderr, flush=True)

    # Routes

    def do_HEAD(self) -> None:
        if self.path.startswith("/api/blobs/"):
            path = self.ollama.store.blob(self.path.removeprefix("/api/blobs/"))
            self.answer(400 if path is None else 200 if path.exists() else 404)
        else:
            self.do_GET()

    def do_GET(self) -> None:
        routes = {"/": self.root, "/api/version": self.version, "/api/tags": self.tags, "/api/ps": self.ps}
        routes.get(self.path, self.not_found)()

    def do_POST(self) -> None:
        if self.path.startswith("/api/blobs/"):
            self.blob(self.path.removeprefix("/api/blobs/"), self.body())
            return
        routes = {"/api/show": self.show, "/api/pull": self.pull, "/api/create": self.create,
                  "/api/generate": self.generate, "/api/embed": self.embed}  # fmt: skip
        raw = self.body()
        if self.path not in routes:
            self.not_found()
        elif not raw:
            self.answer(400, {"error": "missing request body"})
        else:
            try:
                request = json.loads(raw)
            except ValueError as e:
                self.answer(400, {"error": str(e)})
                return
            routes[self.path](request)

    def not_found(self) -> None:
        self.answer(404, "404 page not found", "text/plain")

    def root(self) -> None:
        self.answer(200, "Ollama is running", "text/plain; charset=utf-8")

    def version(self) -> None:
        self.answer(200, {"version": VERSION})

    def tags(self) -> None:
        models = []
        for name, manifest in self.ollama.store.all():
            layer = manifest["layers"][0]
            models.append({"name": str(name), "model": str(name), "modified_at": _now(), "size": layer["size"],
                           "digest": layer["digest"][7:], "details": DETAILS})  # fmt: skip
        self.answer(200, {"models": models})

    def ps(self) -> None:
        models = [
            {"name": str(name), "model": str(name), "size": model.size, "size_vram": 0, "digest": model.digest[7:],
             "expires_at": model.expires.isoformat(), "context_length": model.context, "details": DETAILS}
            for name, model in self.ollama.running().items()
        ]  # fmt: skip
        self.answer(200, {"models": models})

    def missing(self, request: dict[str, Any]) -> None:
        self.answer(404, {"error": f"model '{request.get('model', '')}' not found"})

    def show(self, request: dict[str, Any]) -> None:
        found = self.ollama.store.find(request.get("model", ""))
        if not found:
            self.missing(request)
            return
        blob = self.ollama.store.blob(found[1]["layers"][0]["digest"])
        self.answer(200, {"modelfile": f"# Modelfile\nFROM {blob}\n", "template": "", "details": DETAILS,
                          "modified_at": _now(), "model_info": {"general.architecture": "llama"},
                          "capabilities": ["completion"]})  # fmt: skip

    def blob(self, digest: str, data: bytes) -> None:
        store = self.ollama.store
        path = store.blob(digest)
        if path is None:
            self.answer(400, {"error": "invalid digest format"})
        elif path.exists():
            self.answer(200)
        else:
            got = f"sha256:{hashlib.sha256(data).hexdigest()}"
            if got != digest:
                self.answer(400, {"error": f'digest mismatch, expected "{digest}", got "{got}"'})
                return
            store.add_blob(data)
            self.answer(201)

    def streamed(self, request: dict[str, Any], values: Iterator[dict[str, Any]]) -> None:
        if request.get("stream", True):
            self.stream(values)
            return
        last = list(values)[-1]
        self.answer(int(last.pop("status", 500)) if "error" in last else 200, last)

    def pull(self, request: dict[str, Any]) -> None:
        name = Name.parse(request.get("model") or request.get("name") or "")
        if name is None:
            self.answer(400, {"error": "invalid model name"})
            return
        self.streamed(request, self.pulling(name))

    def pulling(self, name: Name) -> Iterator[dict[str, Any]]:
        ollama = self.ollama
        yield {"status": "pulling manifest"}
        sizes = {str(Name.parse(known)): size for known, size in ollama.script.get("registry", {}).items()}
        if ollama.script.get("pull_error"):
            yield {"error": ollama.script["pull_error"]}
            return
        if str(name) not in sizes:
            yield {"error": "pull model manifest: file does not exist"}
            return
        data = b"GGUF".ljust(sizes[str(name)], b"\0")
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        layer = {"status": f"pulling {digest[7:19]}", "digest": digest, "total": len(data)}
        yield layer
        yield {**layer, "completed": len(data) // 2}
        ollama.gate("pull_gate")
        yield {**layer, "completed": len(data)}
        yield {"status": "verifying sha256 digest"}
        yield {"status": "writing manifest"}
        ollama.store.write(name, ollama.store.add_blob(data), len(data))
        yield {"status": "success"}

    def create(self, request: dict[str, Any]) -> None:
        name = Name.parse(request.get("model") or request.get("name") or "")
        files = request.get("files")
        if name is None:
            self.answer(400, {"error": "invalid model name"})
        elif files is not None and any("/" in f or f in ("", ".", "..") for f in files):
            self.answer(400, {"error": "file path must be relative"})
        else:
            self.streamed(request, self.creating(name, files))

    def creating(self, name: Name, files: dict[str, str] | None) -> Iterator[dict[str, Any]]:
        store = self.ollama.store
        if files is None:
            yield {"error": "neither 'from' or 'files' was specified", "status": 400}
            return
        if not files:
            yield {"error": "no files provided to convert", "status": 400}
            return
        path = store.blob(next(iter(files.values())))
        if path is None or not path.exists() or not path.read_bytes().startswith(b"GGUF"):
            yield {"error": "unknown type", "status": 400}
            return
        yield {"status": "parsing GGUF"}
        digest = next(iter(files.values()))
        yield {"status": f"using existing layer {digest}"}
        yield {"status": "writing manifest"}
        store.write(name, digest, path.stat().st_size)
        yield {"status": "success"}

    def wanted(self, request: dict[str, Any]) -> tuple[Name, dict[str, Any], timedelta | None] | None:
        """The model of a request and how long to keep it, or None after the error was sent."""
        found = self.ollama.store.find(request.get("model", ""))
        if not found:
            self.missing(request)
            return None
        try:
            return *found, keep_alive_of(request.get("keep_alive"))
        except ValueError as e:
            self.answer(400, {"error": str(e)})
            return None

    def embed(self, request: dict[str, Any]) -> None:
        if not (wanted := self.wanted(request)):
            return
        if problem := self.ollama.load(*wanted, None):
            self.answer(500, {"error": problem})
        else:
            self.answer(200, {"model": request["model"], "embeddings": [[0.0]] if request.get("input") else []})

    def generate(self, request: dict[str, Any]) -> None:
        ollama = self.ollama
        if not (wanted := self.wanted(request)):
            return
        name, manifest, keep = wanted
        if name.model in ollama.script.get("embeds", ()):
            self.answer(400, {"error": f'"{request["model"]}" does not support generate'})
            return
        prompt = request.get("prompt", "")
        base = {"model": request["model"], "created_at": _now()}
        if not prompt and keep == timedelta(0):
            with ollama.lock:
                ollama.unload(name)
            self.answer(200, {**base, "response": "", "done": True, "done_reason": "unload"})
            return
        options = request.get("options") or {}
        if problem := ollama.load(name, manifest, keep, options.get("num_ctx")):
            self.answer(500, {"error": problem})
            return
        if not prompt:
            self.answer(200, {**base, "response": "", "done": True, "done_reason": "load"})
            return
        tokens = int(options.get("num_predict", 3))
        parts = [{**base, "response": "a", "done": False} for _ in range(tokens)]
        last = {**base, "done": True, "done_reason": "length", "eval_count": tokens, "prompt_eval_count": 1}
        if request.get("stream", True):
            self.stream(iter([*parts, {**last, "response": ""}]))
        else:
            self.answer(200, {**last, "response": "a" * tokens})


DETAILS = {
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "1M",
    "quantization_level": "F16",
}


def _now() -> str:
    return datetime.now(UTC).isoformat()


def check_command(arguments: list[str]) -> None:
    """`serve` and nothing else."""
    if arguments in (["--version"], ["-v"]):
        print("Warning: could not connect to a running Ollama instance")
        print(f"Warning: client version is {VERSION}")
        sys.exit(0)
    for word in arguments:
        if word.startswith("-"):
            fail(f"unknown flag: {word.split('=')[0]}")
    if not arguments or arguments[0] != "serve":
        fail(f'unknown command "{(arguments or [""])[0]}" for "ollama"')
    if len(arguments) > 1:
        fail(f"accepts 0 arg(s), received {len(arguments) - 1}")


def check_environment() -> None:
    """No misspelt variable, and none of llama-server's: the real one would hand them on to its child."""
    for name in os.environ:
        if name.startswith("OLLAMA_") and name not in VARIABLES:
            fail(f"{name} is no variable of ollama's")
        if name.startswith("LLAMA_ARG_") and name not in ("LLAMA_ARG_FIT", "LLAMA_ARG_FIT_TARGET"):
            fail(f"{name} would be an option of the llama-server that it starts")
    if os.environ.get("CUDA_VISIBLE_DEVICES", "") != os.environ.get("HIP_VISIBLE_DEVICES", ""):
        fail("CUDA_VISIBLE_DEVICES and HIP_VISIBLE_DEVICES differ")


def make_key() -> None:
    """Its identity; without a folder for it there is no server."""
    home = os.environ.get("HOME") or fail("$HOME is not defined")
    key = Path(home, ".ollama", "id_ed25519")
    if key.exists():
        return
    print(f"Couldn't find '{key}'. Generating new private key.", flush=True)
    try:
        key.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        fail(f"could not create directory mkdir {key.parent}: {(e.strerror or '').lower()}")
    try:
        key.touch(mode=0o600)
        key.write_bytes(base64.b64encode(os.urandom(32)))
        key.with_suffix(".pub").write_text("ssh-ed25519 stand-in\n")
    except OSError as e:
        fail(f"open {key}: {(e.strerror or '').lower()}")


def main() -> None:
    """Serve until SIGTERM or SIGINT, which end it with 0 and its runners by SIGKILL."""
    check_command(sys.argv[1:])
    beside = Path(sys.argv[0]).with_name("ollama.json")
    script = json.loads(beside.read_text()) if beside.exists() else {}
    if script.get("tell"):
        told = {"argv": sys.argv, "environ": dict(os.environ), "pid": os.getpid()}
        Path(script["tell"]).write_text(json.dumps(told))
    check_environment()
    make_key()
    host, port = listen_address(os.environ.get("OLLAMA_HOST", ""))
    try:
        keep = keep_alive_of(os.environ.get("OLLAMA_KEEP_ALIVE", "5m")) or FOREVER
        keep_alive_of(os.environ.get("OLLAMA_LOAD_TIMEOUT", "5m"))
        context = int(os.environ.get("OLLAMA_CONTEXT_LENGTH", "4096"))
        most = int(os.environ.get("OLLAMA_MAX_LOADED_MODELS", "3"))
    except ValueError as e:
        fail(str(e))
    store = Store(Path(os.environ.get("OLLAMA_MODELS") or Path(os.environ["HOME"], ".ollama", "models")))
    try:
        for part in ("blobs", "manifests"):
            (store.folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        fail(f"mkdir {e.filename}: {(e.strerror or '').lower()}")
    if not os.environ.get("OLLAMA_NOPRUNE"):
        store.prune()
    Handler.ollama = ollama = Ollama(store, script, context, keep, most)
    with contextlib.suppress(ValueError):
        host = str(ipaddress.ip_address(host))
    ThreadingHTTPServer.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ThreadingHTTPServer.daemon_threads = True
    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as e:
        fail(f"listen tcp {host}:{port}: bind: {(e.strerror or '').lower()}")

    def end(*_: object) -> None:
        for model in ollama.loaded.values():
            model.runner.kill()
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    print(f"Listening on {host}:{port} (version {VERSION})", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
