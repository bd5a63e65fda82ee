"""Whether the engine behind a health endpoint generates: one token, and never from a model that sleeps."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import replace

from cortexd.backends.base import EngineProbe
from cortexd.health.activity import work_done
from cortexd.health.policy import EngineCheck, Outcome, Probe
from cortexd.health.probe import Prober, Server, judge_status


async def check_engine(prober: Prober, server: Server, timeout: float, work_before: float | None) -> EngineCheck:
    """Have a token generated, unless the server sleeps or has counted more than `work_before`; in `timeout` seconds all
    in all."""
    engine = server.questions.engine
    if engine is None or server.stranger:
        return EngineCheck()
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            asleep = await _asleep(prober, server, engine, timeout)
            if asleep is True:
                return EngineCheck(asleep=True)
            # Only now: looking at its metrics would wake llama-server.
            if asleep is False and work_before is not None:
                work = await work_done(prober, server, timeout)
                if work is not None and work > work_before:
                    return EngineCheck(generated=True, work=work)
            probe = asleep or await _generate(prober, server, engine, timeout)
    except TimeoutError:
        probe = Probe(outcome=Outcome.TIMEOUT, reason=f"the engine generates no token within {timeout:g} s")
    latency = time.monotonic() - started
    work = None
    if probe.ok and latency < timeout:
        # After its end, so that our own token is not taken for somebody's work the next time.
        work = await work_done(prober, server, timeout - latency)
    return EngineCheck(probe=replace(probe, latency=latency), work=work)


async def _asleep(prober: Prober, server: Server, engine: EngineProbe, timeout: float) -> bool | Probe:
    """Whether it says that it sleeps, or why it says nothing at all: then nothing may be asked that could wake it."""
    if engine.asleep is None:
        return False
    path, pattern = engine.asleep
    said = await prober.ask(server, path, timeout)
    if said.fault is not None:
        return replace(said.fault, reason=f"asked whether it sleeps: {said.fault.reason}")
    return re.search(pattern.encode(), said.body) is not None


async def _generate(prober: Prober, server: Server, engine: EngineProbe, timeout: float) -> Probe:
    answer = await prober.ask(server, engine.path, timeout, json=engine.body)
    if answer.fault is not None:
        return replace(answer.fault, reason=f"asked for a token: {answer.fault.reason}")
    if fault := judge_status(answer.status, "the engine, asked for a token,"):
        return fault
    if not answer.body.lstrip().startswith(b"{"):
        return Probe(outcome=Outcome.WRONG, reason="the engine, asked for a token, answers no JSON")
    return Probe(outcome=Outcome.OK)
