"""A stand-in for `text-generation-launcher`: its command line, bare variables, processes and HTTP API (launcher/src/main.rs and
router/src/server.rs of 3.3.7). `text-generation-launcher.json` beside it may say:

    {"gate": "FIFO",            its shards are up when somebody writes there
     "dying_gate": "FIFO",      a launcher whose shard died ends when somebody writes there
     "generate_gate": "FIFO",   a request takes until somebody writes there
     "tell": "FILE"}            argv, environment and process ids are written there when the shards are up

Standard library only: it is run as a program of its own inside a model's sandbox (tests/support/standins.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Never

VERSION = "3.3.7"
QUANTIZATIONS = ("awq", "compressed-tensors", "eetq", "exl2", "gptq", "marlin", "bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4",
                 "fp8")  # fmt: skip
OPTIONS: dict[str, Any] = {
    "model-id": "bigscience/bloom-560m", "revision": None, "validation-workers": 2, "sharded": None, "num-shard": int,
    "quantize": None, "dtype": None, "max-concurrent-requests": 128, "max-best-of": 2, "max-stop-sequences": 4,
    "max-input-tokens": int, "max-input-length": int, "max-total-tokens": int, "max-batch-prefill-tokens": int,
    "max-batch-total-tokens": int, "max-waiting-tokens": 20, "max-batch-size": int, "hostname": "0.0.0.0", "port": 3000,
    "prometheus-port": 9000, "shard-uds-path": "/tmp/text-generation-server", "master-addr": "localhost",
    "master-port": 29500, "huggingface-hub-cache": None, "cuda-memory-fraction": 1.0, "api-key": None,
    "usage-stats": "on", "payload-limit": 2000000, "graceful-termination-timeout": 90,
}  # fmt: skip
"""Those with a value, and their defaults; a type where there is none."""
SWITCHES = ("trust-remote-code", "disable-custom-kernels", "json-output", "disable-grammar-support", "ngrok")


class Parser(argparse.ArgumentParser):
    """Says what clap says, and ends with its status."""

    def error(self, message: str) -> Never:
        print(f"error: {message}\n\nFor more information, try '--help'.", file=sys.stderr, flush=True)
        sys.exit(2)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options, else their variables: bare, in capitals."""
    parser = Parser(prog="text-generation-launcher", allow_abbrev=False, add_help=False)
    parser.add_argument("-V", "--version", action="store_true")
    for name, default in OPTIONS.items():
        kind = default if isinstance(default, type) else type(default) if default is not None else str
        said = os.environ.get(name.replace("-", "_").upper())
        value = said if said is not None else None if isinstance(default, type) else default
        flags = [f"--{name}", *(["-p"] if name == "port" else ["-g"] if name.startswith("graceful") else [])]
        parser.add_argument(*flags, type=kind, default=value)
    for name in SWITCHES:
        parser.add_argument(
            f"--{name}", action="store_true", default=os.environ.get(name.replace("-", "_").upper()) == "true"
        )
    found, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(f"unexpected argument '{unknown[0]}' found")
    if found.quantize not in (None, *QUANTIZATIONS):
        parser.error(f"invalid value '{found.quantize}' for '--quantize <QUANTIZE>'")
    return found


def fail(message: str) -> Never:
    """As main ends with an Err: its Debug form, and status 1."""
    print(f"Error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def check(args: argparse.Namespace) -> int:
    """What the launcher refuses; returns the number of shards."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    shards: int = args.num_shard if args.num_shard is not None else len(devices.split(",")) if devices else 1
    if shards < 1:
        fail('ArgumentValidation("`num_shard` cannot be < 1")')
    if shards > 1 and devices is not None and shards > len(devices.split(",")):
        fail(f'NotEnoughCUDADevices("`num_shard` is {shards}")')
    longest, total = args.max_input_tokens, args.max_total_tokens
    if longest is not None and args.max_input_length is not None:
        fail('ArgumentValidation("Both `max_input_tokens` and `max_input_length` are set.")')
    if longest is not None and total is not None and longest >= total:
        fail(f'ArgumentValidation("`max_input_tokens`({longest}) must be < `max_total_tokens`({total})")')
    for program in ("text-generation-server", "text-generation-router"):
        if shutil.which(program) is None:
            print(f"{program} not found in PATH", file=sys.stderr)
            fail("DownloadError" if program.endswith("server") else "WebserverCannotStart")
    if args.model_id.startswith("/") and not Path(args.model_id).exists():
        fail("DownloadError")
    return shards


class Handler(BaseHTTPRequestHandler):
    """The router."""

    protocol_version = "HTTP/1.1"
    launcher: Launcher

    def answer(self, status: int, value: object = None, kind: str = "application/json") -> None:
        data = b"" if value is None else value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        if data:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet, as the real one at its usual level."""

    def do_GET(self) -> None:
        launcher = self.launcher
        if self.path in ("/health", "/", "/ping"):
            if launcher.well:
                self.answer(200)
            else:
                self.answer(503, {"error": "unhealthy", "error_type": "healthcheck"})
        elif self.path == "/info":
            self.answer(200, {"model_id": launcher.args.model_id, "version": VERSION, "router": "text-generation-router",
                              "max_input_tokens": launcher.args.max_input_tokens,
                              "max_total_tokens": launcher.args.max_total_tokens})  # fmt: skip
        elif self.path == "/metrics":
            self.answer(200, launcher.metrics(), "text/plain")
        else:
            self.answer(404)

    def do_POST(self) -> None:
        launcher = self.launcher
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = launcher.args.api_key
        if key is not None and self.headers.get("Authorization", "").lower() != f"bearer {key}".lower():
            self.answer(401)
            return
        if self.path != "/generate":
            self.answer(404)
            return
        try:
            request = json.loads(raw)
            tokens = int((request.get("parameters") or {}).get("max_new_tokens") or 100)
            text = str(request["inputs"])
        except (ValueError, KeyError, AttributeError, TypeError) as e:
            self.answer(422, f"Failed to deserialize the JSON body into the target type: {e}", "text/plain")
            return
        if not text:
            self.answer(422, {"error": "Input validation error: `inputs` cannot be empty", "error_type": "validation"})
            return
        with launcher.busy:
            launcher.count["tgi_batch_inference_count"] += tokens
            if launcher.script.get("generate_gate"):
                Path(launcher.script["generate_gate"]).read_text()
            launcher.count["tgi_request_success"] += 1
            launcher.count["tgi_request_generated_tokens_sum"] += tokens
            self.answer(200, {"generated_text": "a" * tokens})


class Launcher:
    """Shards, each a process group of its own, and the router."""

    def __init__(self, args: argparse.Namespace, script: dict[str, Any], shards: int) -> None:
        self.args, self.script, self.number = args, script, shards
        self.shards: list[subprocess.Popen[bytes]] = []
        self.well = True
        self.stopping = threading.Event()
        self.busy = threading.Lock()
        self.count = dict.fromkeys(
            ("tgi_request_success", "tgi_request_generated_tokens_sum", "tgi_batch_inference_count"), 0
        )
        self.held: list[socket.socket] = []

    def metrics(self) -> str:
        """In Prometheus' text format."""
        count = self.count
        return (
            "# TYPE tgi_request_success counter\n"
            f"tgi_request_success {count['tgi_request_success']}\n\n"
            "# TYPE tgi_batch_inference_count counter\n"
            f'tgi_batch_inference_count{{method="decode"}} {count["tgi_batch_inference_count"]}\n'
            f'tgi_batch_inference_count{{method="prefill"}} {count["tgi_request_success"]}\n\n'
            "# TYPE tgi_queue_size gauge\ntgi_queue_size 0\n\n"
            "# TYPE tgi_request_generated_tokens histogram\n"
            f"tgi_request_generated_tokens_sum {count['tgi_request_generated_tokens_sum']}\n"
            f"tgi_request_generated_tokens_count {count['tgi_request_success']}\n"
        )

    def start(self) -> None:
        """Shards first; nothing listens before they are up."""
        for rank in range(self.number):
            path = f"{self.args.shard_uds_path}-{rank}"
            Path(path).unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            self.held.append(listener)
            self.shards.append(subprocess.Popen(["/bin/sleep", "infinity"], process_group=0))
        for port in (self.args.master_port, self.args.prometheus_port):
            self.held.append(self.hold(port))
        if self.script.get("gate"):
            Path(self.script["gate"]).read_text()

    def hold(self, port: int) -> socket.socket:
        """Another instance cannot have it."""
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError as e:
            self.kill()
            fail(f"ShardCannotStart: port {port}: {e.strerror}")

    def kill(self) -> None:
        """Away with the shards."""
        for shard in self.shards:
            shard.terminate()
            shard.wait()

    def watch(self) -> None:
        """Until it is to stop, or a shard is gone."""
        while not self.stopping.wait(0.05):
            if any(shard.poll() is not None for shard in self.shards):
                self.well = False
                print("Shard 0 crashed", file=sys.stderr, flush=True)
                if self.script.get("dying_gate"):
                    Path(self.script["dying_gate"]).read_text()
                self.kill()
                fail("ShardFailed")
        # Gracefully: what is in flight ends first.
        print("Terminating webserver", file=sys.stderr, flush=True)
        self.busy.acquire(timeout=self.args.graceful_termination_timeout)
        self.kill()
        os._exit(0)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    args = parse(sys.argv[1:])
    if args.version:
        print(f"text-generation-launcher {VERSION}")
        return
    beside = Path(sys.argv[0]).with_suffix(".json")
    script = json.loads(beside.read_text()) if beside.exists() else {}
    launcher = Handler.launcher = Launcher(args, script, check(args))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: launcher.stopping.set())
    threading.Thread(target=launcher.watch, daemon=True).start()
    launcher.start()
    if script.get("tell"):
        told = {"argv": sys.argv, "environ": dict(os.environ), "pid": os.getpid(),
                "shards": [shard.pid for shard in launcher.shards]}  # fmt: skip
        Path(script["tell"]).write_text(json.dumps(told))
    ThreadingHTTPServer.address_family = socket.AF_INET6 if ":" in args.hostname else socket.AF_INET
    ThreadingHTTPServer.daemon_threads = True
    try:
        server = ThreadingHTTPServer((args.hostname, args.port), Handler)
    except OSError as e:
        launcher.kill()
        fail(f"WebserverFailed: {e.strerror}")
    server.serve_forever()


if __name__ == "__main__":
    main()
