"""Verbs that ask a model or wait for it: wait, health, url."""

from __future__ import annotations

import time

from cortexctl.context import MODEL_CHANGES, OWNER_CHANGES, Context, model_call
from cortexctl.errors import FAILURE, NO_SUCH_MODEL, OK, CtlError, no_such_model
from cortexctl.human import clean, duration, failed_runs
from cortexctl.output import ACTIVE
from cortexctl.progress import TICK, Progress
from cortexd.names import model_path

TYPE_CHECKING = False  # see cortexctl.bus
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cortexctl.bus import Call
    from cortexctl.context import Info

_LOST = ("stopped", "failed")
"""States from which a model does not become ready by itself."""
_WELL = ("healthy", "busy")
_INTERVAL = 2.0
"""Seconds until a model that is not well is asked again, if nothing is heard of it before."""


def wait(context: Context, *, quiet: bool = False) -> int:
    """Return when every model is ready, or fail as soon as one cannot be. Nothing is polled.

    The subscription comes before the first look, so that no change falls between them; a daemon that restarts
    sends no changes for what happened meanwhile, so its coming and going is a reason to look again.
    """
    with Progress(context, "Waiting for", loads=True) as progress:
        return _wait(context, progress, quiet)


def _wait(context: Context, progress: Progress, quiet: bool) -> int:
    args, bus = context.args, context.bus
    deadline = None if args.timeout is None else time.monotonic() + args.timeout
    bus.watch(MODEL_CHANGES)
    bus.watch(OWNER_CHANGES)
    waiting = {model_path(info["Name"]): info for info in context.models(args.names)}
    progress.expect(waiting.values())
    progress.since(waiting.values(), time.time())
    for path, info in waiting.items():
        progress.note(path, info)

    def settle() -> None:
        for path in list(waiting):
            if _is_settled(waiting[path]):
                progress.clear()
                _report(context, waiting.pop(path), quiet)

    settle()
    while waiting:
        left = None if deadline is None else deadline - time.monotonic()
        progress.draw({path: info["Name"] for path, info in waiting.items()})
        signal = bus.next_signal(left if not progress.shown else min(TICK, left or TICK))
        if signal is None:
            if deadline is None or time.monotonic() < deadline:
                continue  # only the next frame
            progress.clear()
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
            progress.note(signal.path, signal.body[1])
        settle()
    return context.exit_code


def _is_settled(info: Info) -> bool:
    return info["State"] in ACTIVE or info["State"] in _LOST


def _report(context: Context, info: Info, quiet: bool) -> None:
    """Say how waiting for a model ended."""
    name, state = info["Name"], info["State"]
    if state in ACTIVE:
        record = {key: info[key] for key in ("Name", "State", "URL")}
        if not quiet:
            context.out.result(record, f"{name} is {state} at {info['URL']}")
        return
    reason = f": {info['StateReason']}" if info["StateReason"] else ""
    see = f"see '{context.out.program} {'why' if state == 'failed' else 'start'} {name}'"
    context.fail(CtlError("NotReady", f"{name} is {state}{reason}; {see}"), name)


def health(context: Context) -> int:
    """Probe models now; with --wait, until they are well or will not be. A server that is only busy is well."""
    out, code = context.out, OK
    patterns = context.args.names
    deadline = None if context.args.timeout is None else time.monotonic() + context.args.timeout
    if context.args.wait and (failed := wait(context, quiet=True)):
        return failed
    found = dict(context.on_models(patterns, _check))
    if context.args.wait:
        _until_well(context, found, deadline)
    for name, (result,) in found.items():
        word = result["Health"] if result["Health"] != "unknown" else result["State"]
        out.result({"Name": name, **result}, f"{name} is {out.paint(word, word)}{clean(_details(result, time.time()))}")
        if result["Health"] != "unknown" and not out.json and not out.quiet:
            _history(context, result["History"])
        if result["Health"] not in _WELL:
            code = FAILURE
    return code


def _check(name: str) -> Call:
    return model_call(name, "CheckHealth")


def _until_well(context: Context, found: dict[str, tuple[Info]], deadline: float | None) -> None:
    """Ask those that are not well again, now and then and when the daemon says that their state is another, until each is well
    or at rest, or `deadline` (of time.monotonic()) has passed. `found`: the last answer of each; who is gone is left out."""
    while unwell := [name for name, (result,) in found.items() if _may_recover(result)]:
        due = time.monotonic() + _INTERVAL
        if deadline is not None and deadline <= time.monotonic():
            return
        _await_change(context, unwell, due if deadline is None else min(due, deadline))
        answers = dict(context.on_models(unwell, _check))
        for name in unwell:
            if name in answers:
                found[name] = answers[name]
            else:
                del found[name]


def _await_change(context: Context, names: Sequence[str], due: float) -> None:
    """Return when a model's state or health has changed, or at `due`."""
    paths = [model_path(name) for name in names]
    while (left := due - time.monotonic()) > 0:
        signal = context.bus.next_signal(left)
        if signal and signal.path in paths and signal.body[1].keys() & {"State", "Health"}:
            return


def _may_recover(result: Info) -> bool:
    return result["Health"] not in _WELL and result["State"] not in _LOST


def _details(result: Info, now: float) -> str:
    """What is known beyond the word; `now` is seconds since the epoch."""
    if result["Health"] == "unknown":
        coming = result["Next"] if result["State"] in ("starting", "restarting") else "it is not probed"
        said = [result["StateReason"], coming]
        return f"{_elapsed(result, now)}: {'; '.join(part for part in said if part)}"
    answer = f"{result['Outcome']} in {duration(result['LatencyUSec'] / 1e6)} at {_place(result['Endpoint'])}"
    busy = f"not counted: {result['StateReason']}" if result["Health"] == "busy" else ""
    failures = f"{result['Failures']} of {result['MaxFailures']} failed probes in a row" if result["Failures"] else ""
    runs = failed_runs(result["FailedRuns"], result["MaxRestarts"]) if result["FailedRuns"] else ""
    return ": " + "; ".join(part for part in (answer, busy or result["Reason"], failures, runs, result["Next"]) if part)


def _place(endpoint: str) -> str:
    """What was asked: the URL, or of a server on a Unix socket the path and its socket."""
    words = endpoint.split()
    if len(words) != 3:
        return endpoint
    _, socket, url = words
    return f"{url.removeprefix('http://localhost')} of {socket}"


def _elapsed(result: Info, now: float) -> str:
    """For how long a model has been starting, and how long that usually takes."""
    since = now - result["StateChangeTimestamp"] / 1e6
    if result["State"] != "starting" or not 0 <= since < now:
        return ""
    usual = result["UsualLoadUSec"] / 1e6
    return f" ({duration(since)}{f' of usually {duration(usual)}' if usual >= 1 else ''})"


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
