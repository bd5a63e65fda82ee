"""Verbs that ask a model or wait for it: wait, health, url."""

from __future__ import annotations

import time

from cortexctl.context import Context, model_call
from cortexctl.errors import FAILURE, NO_SUCH_MODEL, OK, CtlError
from cortexctl.human import clean, duration, failed_runs, loading
from cortexctl.output import ACTIVE, LOST
from cortexctl.progress import Progress
from cortexctl.waiting import settled, watch
from cortexd.names import model_path

TYPE_CHECKING = False  # see cortexctl.bus
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cortexctl.bus import Call
    from cortexctl.context import Info

_WELL = ("healthy", "busy")
_INTERVAL = 2.0
"""Seconds until a model that is not well is asked again, if nothing is heard of it before."""


def wait(context: Context, *, quiet: bool = False) -> int:
    """Return when every model is ready, or fail as soon as one cannot be."""
    with Progress(context, "Waiting for", loads=True) as progress:
        return _wait(context, progress, quiet)


def _wait(context: Context, progress: Progress, quiet: bool) -> int:
    args = context.args
    deadline = None if args.timeout is None else time.monotonic() + args.timeout
    watch(context)
    found = context.models(args.names)
    progress.expect(found)
    progress.since(found, time.time())
    for info in found:
        progress.note(model_path(info["Name"]), info)
    for info in settled(context, progress, found, _is_settled, deadline):
        if _is_settled(info):
            _report(context, info, quiet)
        else:
            after = f"was not ready after {args.timeout:g} s; it is {info['State']}"
            context.fail(CtlError("Timeout", f"{info['Name']} {after}"), info["Name"])
    return context.exit_code


def _is_settled(info: Info) -> bool:
    return info["State"] in (*ACTIVE, *LOST)


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
    return result["Health"] not in _WELL and result["State"] not in LOST


def _details(result: Info, now: float) -> str:
    """What is known beyond the word; `now` is seconds since the epoch."""
    if result["Health"] == "unknown":
        coming = result["Next"] if result["State"] in ("starting", "restarting") else "it is not probed"
        said = [result["StateReason"], coming]
        return f"{loading(result, now)}: {'; '.join(part for part in said if part)}"
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


_MEANINGS = {
    "busy": "busy: not counted",
    "failed": "counted as failed",
    "void": "the machine or cortexd stood still: not counted",
}
_UNASKED = "not-asked"
"""The outcome of a probe for which cortexd itself had not what it takes."""


def _history(context: Context, history: list[tuple[int, str, str, int, str]]) -> None:
    """The last liveness probes, newest last."""
    for when, asked, outcome, latency, meaning in history:
        clock = time.strftime("%H:%M:%S", time.localtime(when / 1e6))
        took = duration(latency / 1e6)
        said = "cortexd could not ask: not counted" if outcome == _UNASKED else _MEANINGS.get(meaning, "")
        remark = f"  {said}" if said else ""
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
