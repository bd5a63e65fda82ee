"""Verbs that ask a model or wait for it: wait, health, url."""

from __future__ import annotations

import time

from cortexctl.context import MODEL_CHANGES, OWNER_CHANGES, Context, Info, model_call
from cortexctl.errors import FAILURE, NO_SUCH_MODEL, OK, CtlError, no_such_model
from cortexctl.human import clean, duration
from cortexctl.output import ACTIVE
from cortexd.names import model_path

_LOST = ("stopped", "failed")
"""States from which a model does not become ready by itself."""


def wait(context: Context, *, quiet: bool = False) -> int:
    """Return when every model is ready, or fail as soon as one cannot be. Nothing is polled.

    The subscription comes before the first look, so that no change falls between them; a daemon that restarts
    sends no changes for what happened meanwhile, so its coming and going is a reason to look again.
    """
    args, bus = context.args, context.bus
    deadline = None if args.timeout is None else time.monotonic() + args.timeout
    bus.watch(MODEL_CHANGES)
    bus.watch(OWNER_CHANGES)
    waiting = {model_path(info["Name"]): info for info in context.models(args.names)}
    for path in list(waiting):
        _settle(context, waiting, path, quiet)
    while waiting:
        signal = bus.next_signal(None if deadline is None else deadline - time.monotonic())
        if signal is None:
            for info in waiting.values():
                after = f"was not ready after {args.timeout:g} s; it is {info['State']}"
                context.fail(CtlError("Timeout", f"{info['Name']} {after}"), info["Name"])
            return FAILURE
        if signal.member == "NameOwnerChanged":
            fresh, unknown = context.lookup([info["Name"] for info in waiting.values()])
            waiting = {model_path(info["Name"]): info for info in fresh}
            for name in unknown:
                context.fail(no_such_model(name), name)
        elif signal.path in waiting:
            waiting[signal.path].update(signal.body[1])
        for path in list(waiting):
            _settle(context, waiting, path, quiet)
    return context.exit_code


def _settle(context: Context, waiting: dict[str, Info], path: str, quiet: bool) -> None:
    """Report a model and stop waiting for it, where its state says so."""
    info = waiting[path]
    name, state = info["Name"], info["State"]
    if state in ACTIVE:
        record = {key: info[key] for key in ("Name", "State", "URL")}
        if not quiet:
            context.out.result(record, f"{name} is {state} at {info['URL']}")
    elif state in _LOST:
        reason = f": {info['StateReason']}" if info["StateReason"] else ""
        see = f"see '{context.out.program} {'why' if state == 'failed' else 'start'} {name}'"
        context.fail(CtlError("NotReady", f"{name} is {state}{reason}; {see}"), name)
    else:
        return
    del waiting[path]


def health(context: Context) -> int:
    """Probe models now; with --wait, once they are ready."""
    out, code = context.out, OK
    patterns = context.args.names
    if context.args.wait and (failed := wait(context, quiet=True)):
        return failed
    for name, (result,) in context.on_models(patterns, lambda name: model_call(name, "CheckHealth")):
        if result["Outcome"] == "not-running":
            out.result({"Name": name, **result}, f"{name} is not probed: {result['Reason']}")
            code = FAILURE
            continue
        word = "healthy" if result["Healthy"] else "failing"
        took = duration(result["LatencyUSec"] / 1e6)
        details = [f"{result['Outcome']} in {took} at {result['Endpoint']}", result["Reason"]]
        if result["Failures"]:
            details.append(f"{result['Failures']} of {result['MaxFailures']} failures in a row")
        if not result["Healthy"]:
            details.append(result["Next"])
        text = "; ".join(part for part in details if part)
        out.result({"Name": name, **result}, f"{name} is {out.paint(word, word)}: {text}")
        if not out.json and not out.quiet:
            _history(context, result["History"])
        code = code if result["Healthy"] else FAILURE
    return code


_MEANINGS = {"busy": "busy: not counted", "failed": "counted as failed", "void": "the machine slept: not counted"}


def _history(context: Context, history: list[tuple[int, str, str, int, str]]) -> None:
    """The last liveness probes, newest last."""
    for when, asked, outcome, latency, meaning in history:
        clock = time.strftime("%H:%M:%S", time.localtime(when / 1e6))
        took = duration(latency / 1e6)
        remark = f"  {_MEANINGS[meaning]}" if meaning in _MEANINGS else ""
        line = f"  {clock}  {asked:<6}  {clean(outcome):<20}  {took:>7}{remark}"
        role = {"ok": "dim", "failed": "failing", "busy": "warning"}.get(meaning, "")
        context.out.line(context.out.paint(line, role))


def url(context: Context) -> int:
    """Print addresses."""
    models = context.models(context.args.names)
    for info in models:
        if context.out.json:
            context.out.result({key: info[key] for key in ("Name", "URL")})
        else:
            context.out.line(info["URL"])
    return OK if models else NO_SUCH_MODEL
