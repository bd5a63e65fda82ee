"""Verbs that change what runs: start, stop, restart, unregister, enable, disable, kill, reset-failed."""

from __future__ import annotations

import time

from cortexctl.bus import PROPERTIES, Call
from cortexctl.context import Context, manager_call, model_call
from cortexctl.errors import CtlError
from cortexctl.human import clean, duration
from cortexctl.progress import Progress
from cortexd.names import JOB_INTERFACE, MODEL_INTERFACE, model_path

TYPE_CHECKING = False  # see cortexctl.bus
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TRUE = ("b", True)


class Words:
    """How a job is spoken of: while it runs, and when it is done ({name}, {url}, {time} are filled in)."""

    def __init__(self, doing: str, done: str) -> None:
        self.doing, self.done = doing, done


START = Words("Starting", "{name} is ready at {url} ({time})")
RESTART = Words("Restarting", "{name} is ready again at {url} ({time})")
STOP = Words("Stopping", "{name} is stopped")
UNREGISTER = Words("Removing", "{name} is no longer registered")


def start(context: Context) -> None:
    """Start models; with --enable, at boot too."""
    options = {"enable": TRUE} if context.args.enable else {}
    _run(context, context.args.names, START, lambda name: model_call(name, "Start", "a{sv}", options))


def stop(context: Context) -> None:
    """Stop models."""
    _run(context, context.args.names, STOP, lambda name: model_call(name, "Stop"))


def restart(context: Context) -> None:
    """Restart models."""
    _run(context, context.args.names, RESTART, lambda name: model_call(name, "Restart"))


def unregister(context: Context) -> None:
    """Remove models."""
    options = {"force": TRUE} if context.args.force else {}
    _run(context, context.args.names, UNREGISTER, lambda name: manager_call("Unregister", "sa{sv}", name, options))


def enable(context: Context) -> None:
    """Start models at boot; with --now, now too."""
    options = {"linger": TRUE} if context.args.linger else {}
    enabled: dict[str, list[str]] = {}
    for name, (warnings,) in context.on_models(
        context.args.names, lambda name: model_call(name, "Enable", "a{sv}", options)
    ):
        enabled[name] = warnings
        if not context.args.now:
            context.out.result({"Name": name, "Warnings": warnings}, f"{name} will start at boot")
        context.warn(name, warnings)
    if context.args.now and enabled:
        _run(context, list(enabled), START, lambda name: model_call(name, "Start"), enabled)


def disable(context: Context) -> None:
    """Do not start models at boot; with --now, stop them too."""
    disabled = []
    for name, _ in context.on_models(context.args.names, lambda name: model_call(name, "Disable")):
        disabled.append(name)
        if not context.args.now:
            context.out.result({"Name": name}, f"{name} will not start at boot")
    if context.args.now and disabled:
        _run(context, disabled, STOP, lambda name: model_call(name, "Stop"))


def kill(context: Context) -> None:
    """Send a signal."""
    signal, options = context.args.signal, {"whom": ("s", context.args.whom)}
    for name, _ in context.on_models(
        context.args.names, lambda name: model_call(name, "Kill", "sa{sv}", signal, options)
    ):
        context.out.result({"Name": name, "Signal": signal}, f"Sent {signal} to {name}")


def reset_failed(context: Context) -> None:
    """Forget failures."""
    for name, _ in context.on_models(context.args.names, lambda name: model_call(name, "ResetFailed")):
        context.out.result({"Name": name})


def _run(
    context: Context,
    patterns: Sequence[str],
    words: Words,
    call: Callable[[str], Call],
    known: Mapping[str, list[str]] | None = None,
) -> None:
    """Begin a job on each model, all at once, and wait for all. `known`: warnings that were shown already."""
    out, began = context.out, time.monotonic()
    names = context.names(patterns)
    with Progress(context, words.doing, loads="{url}" in words.done) as progress:
        jobs = {name: path for name, (path,) in context.each({name: call(name) for name in names})}
        earlier = known or {}
        if context.args.no_block:
            for name, path in jobs.items():
                out.result({"Name": name, "Job": path, "Warnings": earlier.get(name, [])}, f"{words.doing} {name}")
            return
        waits = {name: Call(path, JOB_INTERFACE, "Wait", "a{sv}", ({},)) for name, path in jobs.items()}
        for name, reply in progress.follow(waits):
            if isinstance(reply, CtlError):
                look = "why" if "{url}" in words.done else "status"
                context.fail(_failure(reply, name, f"{out.program} {look}", f"{out.program} logs"), name)
                continue
            result, warnings = reply
            record = {"Name": name, "Job": jobs[name], "Result": result, "Warnings": earlier.get(name, []) + warnings}
            took = duration(time.monotonic() - began)
            url = _url(context, name) if "{url}" in words.done and not (out.json or out.quiet) else ""
            out.result(record, words.done.format(name=name, url=url, time=took))
            context.warn(name, warnings)


def _url(context: Context, name: str) -> str:
    reply = context.bus.try_call(Call(model_path(name), PROPERTIES, "Get", "ss", (MODEL_INTERFACE, "URL")))
    return clean(reply[0]) if reply else "an unknown address"


def _failure(error: CtlError, name: str, *commands: str) -> CtlError:
    """A job's failure with its cause and the next commands."""
    if error.name not in ("JobFailed", "JobTimeout"):
        return error
    cause = error.message.rstrip(".")
    sentence = cause if cause.startswith("Job for ") else f"Job for {name} failed because {cause}"
    see = " and ".join(f"'{command} {name}'" for command in commands)
    return CtlError(error.name, f"{sentence}. See {see}.", error.exit_code)
