"""Why a run ended: evidence in, one named cause out. Pure.

The order is that of trust. First what people and cortexd itself did, then what the kernel and systemd say, and only then
what the server printed: whoever can make it print can make it print anything.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cortexd.backends import BACKENDS
from cortexd.budget import with_last
from cortexd.diagnosis import causes
from cortexd.diagnosis.evidence import Evidence, masked
from cortexd.diagnosis.finding import plain
from cortexd.kinds import INFINITY, size_text
from cortexd.states import BY_SYSTEMD, CRASHES, NOT_READY, describe_end, ended_well, not_restarted, signal_name

UNKNOWN = "unknown"
_VAGUE = (UNKNOWN, "crashed", "exited", "killed")
"""Causes that say how a run ended and not why."""

_CLD_EXITED, _CLD_KILLED, _CLD_DUMPED = 1, 2, 3
_SHOWN_LINES = 5
_MAX_TEXT = 400

_LOGS = "'cortexctl logs {name}' shows what it said"
_LAST_LOST = "what it said last may be lost, since the journal was flooded"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """A named cause. `cause` is a word for scripts, which stays; `sentence` is for people, about the server or "it";
    `remedy` says what to do next, with the command where there is one; `evidence` is what it rests on: label and text."""

    cause: str
    sentence: str
    remedy: str = ""
    evidence: tuple[tuple[str, str], ...] = ()

    def details(self) -> dict[str, Any]:
        """As an event keeps it."""
        return {
            "cause": self.cause,
            "sentence": self.sentence,
            "remedy": self.remedy,
            "evidence": [list(row) for row in self.evidence],
        }


def from_details(details: Mapping[str, Any]) -> Cause | None:
    """A cause as `details` wrote it; None for anything else."""
    try:
        rows = tuple((str(label), str(text)) for label, text in details["evidence"])
        words = {key: str(details[key]) for key in ("cause", "sentence", "remedy")}
    except (KeyError, TypeError, ValueError):
        return None
    return Cause(**words, evidence=rows)


def explain(evidence: Evidence) -> Cause:
    """The cause of a run's end. There always is one, if only what systemd says of its exit."""
    found = next(filter(None, (rule(evidence) for rule in _RULES)))
    unit = evidence.unit
    if unit.active_state == "failed" and unit.n_restarts and found.cause in _VAGUE:
        found = replace(found, cause="crash-loop")
    if unit.active_state == "inactive" and unit.restart and found.cause in ("killed", "exited"):
        found = replace(found, sentence=found.sentence + not_restarted(unit))
    line = found.evidence
    return replace(found, evidence=(*_facts(evidence), *line, *_last_lines(evidence, line)))


def given_up(name: str, why: str, what: str, last: Cause) -> Cause:
    """The cause of a model that is restarted no more, since (`what`) so many runs failed in a row, of which this was the last
    one's: what is known of that one is a better word than `why`, which was said when it ended. `name`: the model's."""
    start = f"'cortexctl start {name}' starts it again"
    if last.cause == "stopped" or not what:  # what stopped it was cortexd itself
        look = f"'cortexctl events {name}' shows how each run ended; {start}"
        return replace(last, cause="crash-loop", sentence=why, remedy=look)
    if "cortexctl start" not in last.remedy:
        last = replace(last, remedy=f"{last.remedy}; {start}" if last.remedy else start)
    word = "crash-loop" if last.cause in _VAGUE else last.cause
    end = "it is restarted no more until it is started by hand or at boot"
    return replace(last, cause=word, sentence=f"{with_last(what, last.sentence)}; {end}")


def _remedy(evidence: Evidence, text: str) -> str:
    return text.format(**evidence.settings)


def _stopped(e: Evidence) -> Cause | None:
    """A person asked for it."""
    if e.ending.by == "stop" or e.stopped_by:
        by = f" by {plain(e.stopped_by, 80)}" if e.stopped_by else ""
        return Cause(
            cause="stopped", sentence=f"it was stopped{by}", remedy=_remedy(e, "'cortexctl start {name}' starts it")
        )
    if e.ending.by == "systemd" or (e.unit.result == "success" and e.said("Stopping ")):
        return Cause(
            cause="stopped",
            sentence=f"it was stopped by systemd: {BY_SYSTEMD}",
            remedy=_remedy(e, "'cortexctl start {name}' starts it"),
        )
    return None


def _killed_by_us(e: Evidence) -> Cause | None:
    number, sent = e.unit.exec_main_status, e.ending.signal
    died = e.unit.exec_main_code in (_CLD_KILLED, _CLD_DUMPED) and number == sent
    if e.ending.by == "health" and died:
        return Cause(
            cause="unhealthy",
            sentence=f"cortexd killed it: {e.probes or 'its health probes failed'}",
            remedy=_remedy(e, _LOGS + "; 'cortexctl set {name} health.timeout_seconds=N' gives it more time to answer"),
        )
    # Servers catch the gentle ones and end with a status of their own.
    if e.ending.by == "kill" and (died or sent in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)):
        return Cause(
            cause="killed",
            sentence=f"it was sent {signal_name(sent)} with cortexctl kill",
            remedy=_remedy(e, "'cortexctl start {name}' starts it"),
        )
    return None


def _out_of_memory(e: Evidence) -> Cause | None:
    """The kernel's OOM killer, or systemd-oomd."""
    counted = e.memory
    if e.unit.result != "oom-kill" and not (counted and counted.killed):
        return None
    more = _remedy(e, "'cortexctl set {name} memory=SIZE' gives it more; a smaller max_model_len or model needs less")
    limit = e.spec.limits.memory
    if e.said("systemd-oomd killed"):
        sentence = "systemd-oomd killed it, since the machine was short of memory"
        return Cause(
            cause="machine-out-of-memory", sentence=sentence, remedy="stop another model, or use a smaller one"
        )
    if counted and counted.killed and not counted.reached_limit:
        sentence = f"the kernel killed it, since the machine was out of memory (its own limit is {size_text(limit)})"
        return Cause(
            cause="machine-out-of-memory", sentence=sentence, remedy="stop another model, or use a smaller one"
        )
    if limit == INFINITY:
        return Cause(cause="out-of-memory", sentence="the kernel killed it, out of memory", remedy=more)
    sentence = f"out of memory: the kernel killed it at its memory limit of {size_text(limit)}"
    return Cause(cause="out-of-memory", sentence=sentence, remedy=more)


def _before_it_ran(e: Evidence) -> Cause | None:
    """systemd's own exit statuses, for what fails before the program runs (systemd.exec(5))."""
    unit, status = e.unit, e.unit.exec_main_status
    if unit.result == "resources":
        line = e.said("Failed to load environment files") or e.said("Failed to ")
        told = f": {line.shown.partition(': ')[2] or line.shown}" if line else ""
        sentence = f"systemd could not prepare it{told}"
        return Cause(cause="resources", sentence=sentence, remedy=_remedy(e, _LOGS))
    if unit.exec_main_code != _CLD_EXITED or status < 200:
        return None
    step = e.said("Failed to set up mount namespacing") if status == 226 else e.said("Failed at step ")
    detail = step.text if step else ""
    if status == 203:
        reason = detail.rpartition(": ")[2]
        program = plain(e.executable, _MAX_TEXT)
        if reason in ("", "No such file or directory"):
            missing = Cause(cause="executable-missing", sentence=f"its executable {program} does not exist")
        else:
            missing = Cause(cause="executable-broken", sentence=f"its executable {program} cannot be run: {reason}")
        return replace(missing, remedy=_remedy(e, "install it, or 'cortexctl set {name} exec=FILE'"))
    if status == 226:
        path = re.search(r"mount namespacing: (?:/run/systemd/unit-root)?(/[^:]{1,400}): (.{1,100})", detail)
        if path and path[1] == e.spec.path:  # what lies in /tmp is bound into it
            sentence = f"the model {plain(path[1], _MAX_TEXT)} does not exist"
            remedy = _remedy(e, "check the file, or 'cortexctl set {name} path=PATH'")
            return Cause(cause="model-missing", sentence=sentence, remedy=remedy)
        if path:
            sentence = f"its sandbox cannot be made: {path[1]}: {path[2]}"
            remedy = _remedy(
                e, "make that folder, or take it out of ReadWritePaths: 'cortexctl show {name} -p ReadWritePaths'"
            )
        else:
            sentence = describe_end(unit)
            remedy = _remedy(e, "see whether user namespaces are allowed on this machine; " + _LOGS)
        return Cause(cause="sandbox-failed", sentence=sentence, remedy=remedy)
    words = {200: "folder-missing", 217: "sandbox-failed", 218: "sandbox-failed", 243: "credential-missing"}
    if status in words:
        remedies = {243: "'cortexctl secret list {name}' shows its secrets; set the one that is missing"}
        remedy = _remedy(e, remedies.get(status, "see whether user namespaces are allowed on this machine; " + _LOGS))
        return Cause(cause=words[status], sentence=describe_end(unit), remedy=remedy)
    return None


def _too_late(e: Evidence) -> Cause | None:
    """systemd's time-outs, and the waiter's."""
    told = e.unit.status_text.removeprefix(NOT_READY) if e.unit.status_text.startswith(NOT_READY) else ""
    wait = "'cortexctl set {name} health.startup_timeout_seconds=N' gives it longer; " + _LOGS
    if e.unit.result in ("timeout", "exit-code") and re.match(r"no (?:sign of )?progress|stalled", told):
        longer = "'cortexctl set {name} health.startup_stall_seconds=N' gives it longer; " + _LOGS
        sentence = f"it was stuck while it loaded: {plain(told, _MAX_TEXT)}"
        return Cause(cause="stalled", sentence=sentence, remedy=_remedy(e, longer))
    if re.search(r" (?:asks for a|refuses the) key ", told):
        key = "'cortexctl secret list {name}' shows its keys, and api_key in the backend's file names the variable"
        return Cause(cause="key-refused", sentence=plain(told, _MAX_TEXT), remedy=_remedy(e, key))
    if told.startswith("not ready after"):
        return Cause(cause="start-timeout", sentence=f"it was {plain(told, _MAX_TEXT)}", remedy=_remedy(e, wait))
    if e.unit.result != "timeout":
        return None
    if e.said("start", "timed out"):
        return Cause(
            cause="start-timeout", sentence="systemd killed it: it was not ready in time", remedy=_remedy(e, wait)
        )
    if e.said("stop", "timed out"):
        after = f" within {e.stop_seconds} s" if e.stop_seconds else " in time"
        sentence = f"systemd killed it, since it did not end{after} after it was asked to"
        return Cause(cause="stop-timeout", sentence=sentence, remedy=_remedy(e, _LOGS))
    return Cause(cause="timeout", sentence=describe_end(e.unit), remedy=_remedy(e, wait))


def _port_held(e: Evidence) -> Cause | None:
    """The waiter found somebody else on the port."""
    told = e.unit.status_text.removeprefix(NOT_READY)
    if told == e.unit.status_text or " is held by " not in told:
        return None
    remedy = _remedy(e, "stop that ('ss -ltnp sport = :{port}'), or 'cortexctl set {name} port=auto'")
    return Cause(cause="port-in-use", sentence=plain(told, _MAX_TEXT), remedy=remedy)


def _killed_from_outside(e: Evidence) -> Cause | None:
    """By a signal that is no crash. Nobody records a sender, so that no log line may explain it."""
    unit, number = e.unit, e.unit.exec_main_status
    if unit.exec_main_code not in (_CLD_KILLED, _CLD_DUMPED) or number in CRASHES:
        return None
    if unit.result not in ("signal", "core-dump", "success", "start-limit-hit"):
        return None
    sentence = f"{describe_end(unit) or f'the server was killed by {signal_name(number)}'} from outside"
    remedy = _remedy(e, "nobody records who sent it; 'cortexctl start {name}' starts it again")
    return Cause(cause="killed", sentence=sentence, remedy=remedy)


def _printed(e: Evidence) -> Cause | None:
    """What the server said. What the waiter was told by a server that lives counts as its last line."""
    told = e.unit.status_text.removeprefix(NOT_READY)
    said = [line.text for line in e.own_lines]
    found = causes.read([*said, told] if told != e.unit.status_text else said, dict(e.settings))
    if found is None:
        return None
    line = next((line.shown for line in e.lines if line.text == found.line), "")
    evidence = (("Log", line),) if line else ()
    return Cause(
        cause=found.cause,
        sentence=plain(masked(found.sentence), _MAX_TEXT),
        remedy=plain(found.remedy if found.cause != "bad-option" else _correct_option(e, found.remedy), _MAX_TEXT),
        evidence=evidence,
    )


def _correct_option(e: Evidence, added_by_hand: str) -> str:
    """Where a wrong option can come from: what stands in extra_args, else the backend's own command."""
    backend = e.spec.backend
    if e.spec.extra_args:
        return added_by_hand
    if backend in BACKENDS:
        return _remedy(
            e, f"install a version of {backend} that has it, or name one: 'cortexctl set {{name}} exec=FILE'"
        )
    return f"correct it in the file of the backend {backend}; 'cortexctl backends' shows where that lies"


def _crashed(e: Evidence) -> Cause | None:
    number = e.unit.exec_main_status
    if e.unit.exec_main_code not in (_CLD_KILLED, _CLD_DUMPED) or number not in CRASHES:
        return None
    sentence = f"the server crashed: {signal_name(number)}, {CRASHES[signal.Signals(number)]}"
    return Cause(cause="crashed", sentence=sentence, remedy=_remedy(e, _LOGS))


def _otherwise(e: Evidence) -> Cause:
    unit = e.unit
    if unit.result == "start-limit-hit":
        return Cause(cause="crash-loop", sentence=describe_end(unit), remedy=_remedy(e, _LOGS))
    if unit.exec_main_code == _CLD_EXITED and ended_well(unit) and not unit.status_text.startswith(NOT_READY):
        sentence = f"the server ended by itself with status {unit.exec_main_status}"
        return Cause(cause="exited", sentence=sentence, remedy=_remedy(e, _LOGS))
    sentence = describe_end(unit) or "the server ended"
    own = e.own_lines
    if own and unit.exec_main_code == _CLD_EXITED and unit.exec_main_status:
        sentence += f"; {_LAST_LOST}" if e.lost else f"; the last it said: {own[-1].shown}"
    return Cause(cause=UNKNOWN, sentence=sentence, remedy=_remedy(e, _LOGS))


_RULES: tuple[Callable[[Evidence], Cause | None], ...] = (
    _stopped,
    _killed_by_us,
    _out_of_memory,
    _before_it_ran,
    _too_late,
    _port_held,
    _killed_from_outside,
    _printed,
    _crashed,
    _otherwise,
)


def _facts(e: Evidence) -> Iterator[tuple[str, str]]:
    unit = e.unit
    if unit.result != "success":
        yield "Result", unit.result
    if unit.exec_main_code == _CLD_EXITED:
        yield "Exit", f"status {unit.exec_main_status}"
    elif unit.exec_main_code:
        dumped = ", core dumped" if unit.exec_main_code == _CLD_DUMPED else ""
        yield "Exit", signal_name(unit.exec_main_status) + dumped
    # At its own limit of starts systemd counts one that was none.
    restarts = unit.n_restarts - bool(e.said("Start request repeated too quickly"))
    if restarts > 0:
        yield "Restarts", str(restarts)
    if e.memory is not None:
        counted = e.memory
        # The group may be gone before the last of them is read; systemd, which was told of it, knows that there was one.
        killed = max(counted.killed, int(unit.result == "oom-kill"))
        peak = f", at most {size_text(counted.peak - counted.peak % 2**20)} used" if counted.peak >= 2**20 else ""
        # A counter that is still 0 may have been gone with the control group before it could be read: nothing is said of it.
        counts = {
            "limit hit": counted.reached_limit,
            "processes killed": killed,
            "throttled": counted.throttled,
        }
        told = ", ".join(f"{what}: {count}" for what, count in counts.items() if count)
        yield "Memory", f"limit {size_text(e.spec.limits.memory)}{peak}" + (f"; {told}" if told else "")
    if e.probes:
        yield "Probes", plain(e.probes, _MAX_TEXT)
    if unit.status_text:
        yield "Status", plain(unit.status_text, _MAX_TEXT)
    if e.lost:
        yield "Lost", plain(e.lost, _MAX_TEXT)
    if unit.invocation_id:
        yield "Run", unit.invocation_id


def _last_lines(e: Evidence, told: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, str]]:
    """The last lines that its own processes wrote, or where there are none, systemd's; those that are told already left
    out."""
    known = {text for _, text in told}
    for line in (e.own_lines or e.lines)[-_SHOWN_LINES:]:
        if line.shown not in known:
            yield "Log", line.shown
