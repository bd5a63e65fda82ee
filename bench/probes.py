"""What health checks cost: the CPU time of one process that watches so many servers, all of them well.

    python bench/probes.py --models 1000 --interval 1 --seconds 20 [--key] [--profile FILE]

The whole way of a round that changes nothing is in it: the loop, the look at whose socket it is (--key: of a server that
has a key, which nobody but it may see), the request, the judgement. The servers are one other process, on a port each.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import functools
import json
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from cortexd.door import Door
from cortexd.health.monitor import Monitor, Watched
from cortexd.health.policy import HealthState, Verdict
from cortexd.health.probe import Prober, Questions
from cortexd.model import HealthPolicy
from cortexd.secrets import Secrets
from cortexd.systemd.protocol import UnitState

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'
HEALTHY = r'\s*\{\s*"status"\s*:\s*"ok"[^{}]*\}\s*'  # llama.cpp's
KEY = "API_KEY"


class _Answering(asyncio.Protocol):
    """Says ANSWER to whoever asks, and leaves it to the other side to close."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(ANSWER)


async def serve(count: int, to: int) -> None:
    """The other process: tells its ports, and serves until it is killed."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(_Answering, "127.0.0.1", 0) for _ in range(count)]
    ports = json.dumps([server.sockets[0].getsockname()[1] for server in servers])
    os.write(to, ports.encode() + b"\n")  # less than a pipe holds
    await asyncio.Event().wait()


class Units:
    """What the door needs of systemd: that all servers run in this process's own control group."""

    def __init__(self) -> None:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line[3:] for line in groups if line.startswith("0::"))
        self.state = UnitState(unit="a", control_group=own.rstrip("/") or "/.")  # the root of a namespace

    def cached(self, unit: str) -> UnitState:
        """The state of any unit."""
        return self.state


class Served:
    """What the door needs of a model."""

    endpoint, questions, unit = "/health", Questions(HEALTHY), "a"

    def __init__(self, name: str, port: int, secrets: Secrets, key: bool) -> None:
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        if key:
            secrets.set(name, KEY, b"s3cret")
        self.plan, self.spec = argparse.Namespace(api_key=KEY), argparse.Namespace(env=())
        self.definition = argparse.Namespace(secrets=secrets.known(name))


async def measure(ports: list[int], args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Watch all of them for so long, from when each was probed once."""
    secrets, units, prober = Secrets(folder), Units(), Prober()
    door = Door(secrets, cast(Any, units))
    policy = HealthPolicy(interval=args.interval, timeout=min(10.0, args.interval), enabled=True, endpoint="/health")
    outcomes: dict[str, int] = {}
    latencies: list[float] = []
    all_probed = asyncio.Event()

    async def report(name: str, before: HealthState, verdict: Verdict) -> None:
        past = verdict.state.history[-1]
        outcomes[past.outcome] = outcomes.get(past.outcome, 0) + 1
        latencies.append(past.latency)
        if len(latencies) >= len(ports):
            all_probed.set()

    async def cpu() -> int | None:
        return None

    monitor = Monitor(prober, report)
    for number, port in enumerate(ports):
        model = Served(f"m{number}", port, secrets, args.key)
        monitor.watch(
            Watched(
                name=model.name, run="r", current=lambda: "r", policy=lambda: policy,
                server=functools.partial(door.server, cast(Any, model)), cpu=cpu,
            )
        )  # fmt: skip
    await all_probed.wait()
    outcomes.clear()
    latencies.clear()
    profile = cProfile.Profile() if args.profile else None
    if profile:
        profile.enable()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    await asyncio.sleep(args.seconds)
    after, took = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    if profile:
        profile.disable()
        profile.dump_stats(args.profile)
    await monitor.close()
    probes = sum(outcomes.values())
    return {
        "models": len(ports),
        "interval": args.interval,
        "key": args.key,
        "probes": probes,
        "outcomes": outcomes,
        "microseconds_per_probe": round((user + system) / max(1, probes) * 1e6, 1),
        "of_them_in_the_kernel": round(system / max(1, probes) * 1e6, 1),
        "percent_of_a_core": round((user + system) / took * 100, 3),
        "median_latency_ms": round(statistics.median(latencies or [0]) * 1e3, 3),
    }


def main() -> int:
    """Start the servers, measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure")
    parser.add_argument("--key", action="store_true", help="the servers have keys")
    parser.add_argument("--profile", help="write cProfile's figures to this file; the time measured is no use then")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    reading, writing = os.pipe()
    if (servers := os.fork()) == 0:
        asyncio.run(serve(args.models, writing))
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            ports = json.loads(pipe.readline())
        with tempfile.TemporaryDirectory() as folder:
            sys.stdout.write(json.dumps(asyncio.run(measure(ports, args, Path(folder)))) + "\n")
    finally:
        os.kill(servers, signal.SIGKILL)
        os.waitpid(servers, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
