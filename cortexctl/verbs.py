"""Every verb with its options, in one table that the parser, --help, the manual page and completion share."""

from __future__ import annotations

import argparse

TYPE_CHECKING = False  # typing takes as long to import as half of our own modules
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Add = Callable[[argparse.ArgumentParser], None]

SUPPRESS = argparse.SUPPRESS

SETTING_OPTIONS: tuple[tuple[str, str, str], ...] = (
    ("path", "PATH", "the model: a file, a folder or a reference such as org/name"),
    ("backend", "BACKEND", "vllm, llamacpp, ollama, tgi, or one of 'cortexctl backends' (default: vllm)"),
    ("port", "N|auto", "TCP port; auto picks a free one and keeps it (default: 8000)"),
    ("host", "HOST", "address or Unix socket to listen on (default: 127.0.0.1)"),
    ("gpus", "IDS|none", "GPUs that it may see, separated by commas (default: 0)"),
    ("memory", "SIZE", "memory limit (default: 32G)"),
    ("cpu", "CORES", "limit of CPU cores (default: 4.0)"),
    ("max_model_len", "N", "context length in tokens (default: 4096)"),
    ("tensor_parallel", "N", "GPUs that share the model (default: 1)"),
    ("quantization", "METHOD", "quantization method: awq, gptq or what else the backend has"),
    ("extra_args", "ARGS", "more arguments for the backend, quoted as in a shell"),
    ("exec", "FILE", "the backend's executable (default: found on your PATH)"),
    ("gpu_memory_utilization", "SHARE", "share of the GPU's memory to use (default: 0.9)"),
    ("security", "PROFILE", "of the sandbox: baseline, default, strict or none (default: default)"),
)
"""register's options: the name of the setting, what stands for its value in the help, meaning."""


class Verb:
    """One verb: where its function is, what it does in a line, its options, and whether it takes several models."""

    __slots__ = ("add", "help", "many", "run")

    def __init__(self, run: str, help: str, add: tuple[Add, ...] = (), many: bool = True) -> None:
        self.run, self.help, self.add, self.many = run, help, add, many


def _seconds(text: str) -> float:
    """An option's value: seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value < float("inf"):
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds; use one such as 30 or 2.5")


def _count(least: int) -> Callable[[str], int]:
    """An option's value: a whole number that is not below `least`."""

    def count(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= least:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines; use a whole number from {least} on")

    return count


def _lines(text: str) -> str:
    """journalctl's --lines."""
    if text == "all" or (text.isascii() and text.isdigit()):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is no number of lines; use a whole number, or all")


def _option(*flags: str, **keywords: Any) -> Add:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(*flags, **keywords)

    return add


def _flag(*flags: str, help: str) -> Add:
    return _option(*flags, action="store_true", help=help)


def _names(nargs: str, help: str = "name of a model, or a shell pattern such as 'llama-*'") -> Add:
    return _option("names", nargs=nargs, metavar="NAME", help=help)


def _setting_options(parser: argparse.ArgumentParser) -> None:
    for name, metavar, text in SETTING_OPTIONS:
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, dest=name, metavar=metavar, default=SUPPRESS, required=name == "path", help=text)


NAME = _option("name", metavar="NAME", help="name of a model")
NAMES = _names("+")
ANY_NAMES = _names("*", "name of a model, or a shell pattern; none: all")
NO_BLOCK = _flag("--no-block", help="do not wait until it is done")
TIMEOUT = _option(
    "--timeout", type=_seconds, metavar="SECONDS", help="give up waiting after that long (default: never)"
)
LINGER = _flag("--linger", help="let your services run without a login, where they do not yet (loginctl enable-linger)")

VERBS: dict[str, Verb] = {
    "register": Verb(
        "config:register",
        "Register a model: write its unit and remember its settings",
        (
            NAME,
            _setting_options,
            _option(
                "--env",
                action="append",
                default=[],
                metavar="KEY=VALUE",
                help="a variable for the server; repeatable; not for secrets, which systemd would show",
            ),
            _option("--api-key", metavar="auto", help="have its clients give a key, which is made and kept secret"),
            _flag("--strict", help="refuse to start where the sandbox is not in force (sandbox_required)"),
            _flag("--no-health-check", help="no liveness probes while it runs (readiness is waited for all the same)"),
            _option("--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting; repeatable"),
        ),
        many=False,
    ),
    "unregister": Verb(
        "jobs:unregister",
        "Remove a model with its unit; the model's own files stay",
        (NAMES, _flag("--force", help="stop it first if it runs"), NO_BLOCK),
    ),
    "set": Verb(
        "config:set_settings",
        "Change settings; an empty value brings the default back",
        (_option("items", nargs="+", metavar="NAME... KEY=VALUE...", help="models, then settings"),),
    ),
    "secret": Verb(
        "secret:secret",
        "Give a server secrets, such as HF_TOKEN, take them away, or list their names",
        (
            _option(
                "words",
                nargs="+",
                metavar="set|unset|list NAME [KEY]",
                help="set asks for the value, or reads it from standard input; list takes no KEY",
            ),
            _flag("--generate", help="with set: make a random value, such as a key that clients have to give"),
        ),
        many=False,
    ),
    "show": Verb(
        "config:show",
        "Every property and setting, key=value",
        (
            NAMES,
            _option("-p", "--property", action="append", metavar="KEY,...", help="only these; repeatable"),
            _flag("--value", help="print the values alone"),
        ),
    ),
    "cat": Verb("config:cat", "The unit file and its drop-ins", (NAMES,)),
    "repair": Verb(
        "repair:repair",
        "Write unit files again that were deleted or edited, and keep the edited ones under another name",
        (ANY_NAMES, _flag("--yes", help="do not ask before an edited file is replaced")),
    ),
    "backends": Verb("backends:backends", "The programs that can serve models, and where each is found"),
    "start": Verb(
        "jobs:start",
        "Start models and wait until they are ready",
        (NAMES, _flag("--enable", help="start it at boot, too"), NO_BLOCK),
    ),
    "stop": Verb("jobs:stop", "Stop models and wait until their memory and port are free", (NAMES, NO_BLOCK)),
    "restart": Verb("jobs:restart", "Restart models and wait until they are ready", (NAMES, NO_BLOCK)),
    "enable": Verb(
        "jobs:enable",
        "Start models at boot",
        (NAMES, _flag("--now", help="start it now, too"), LINGER, NO_BLOCK),
    ),
    "disable": Verb(
        "jobs:disable", "Do not start models at boot", (NAMES, _flag("--now", help="stop it now, too"), NO_BLOCK)
    ),
    "kill": Verb(
        "jobs:kill",
        "Send a signal to a model's processes",
        (
            NAMES,
            _option("-s", "--signal", default="TERM", metavar="SIGNAL", help="name or number (default: TERM)"),
            _option("--whom", default="all", choices=("main", "control", "all"), help="which processes (default: all)"),
        ),
    ),
    "reset-failed": Verb("jobs:reset_failed", "Forget failures and start-limit hits", (ANY_NAMES,)),
    "wait": Verb(
        "watch:wait",
        "Wait until models are ready; fail as soon as one cannot be",
        (NAMES, TIMEOUT),
    ),
    "status": Verb(
        "state:status",
        "All models in a table; with a name, everything about it",
        (ANY_NAMES, _option("-n", "--lines", type=_count(0), default=10, metavar="N", help="log lines (default: 10)")),
    ),
    "list": Verb("state:table", "The table alone, of all models or of those named", (ANY_NAMES,)),
    "is-active": Verb("state:is_active", "Print the state; 0 if ready, busy, degraded or unhealthy", (NAMES,)),
    "is-enabled": Verb("state:is_enabled", "Print the state of the unit file; 0 if enabled", (NAMES,)),
    "is-failed": Verb("state:is_failed", "Print the state; 0 if failed", (NAMES,)),
    "health": Verb(
        "watch:health",
        "Ask the health endpoint now; its last outcomes, and what happens at the next failure",
        (NAMES, _flag("--wait", help="wait until it is well, and fail as soon as it cannot be"), TIMEOUT),
    ),
    "url": Verb("watch:url", "Print the address to send requests to", (NAMES,)),
    "check": Verb("check:check", "What would keep models from starting: files, program, sandbox, GPUs, hub", (NAMES,)),
    "security": Verb(
        "security:security",
        "What of the sandbox is in force on this machine, directive by directive",
        (NAMES, _flag("--probe", help="try it now; else it is tried once a boot")),
    ),
    "why": Verb("why:why", "Why models do not run: the cause, what to do, and what it rests on", (NAMES,)),
    "doctor": Verb(
        "doctor:doctor",
        "What is wrong with this machine and the installation, and how to repair it; works without the daemon",
        (
            _flag("--fix", help="repair what can be repaired without being root; asks before each repair"),
            _flag("--yes", help="with --fix: do not ask"),
        ),
    ),
    "logs": Verb(
        "logs:logs",
        "The journal of models (journalctl)",
        (
            NAMES,
            _flag("-f", "--follow", help="go on with new lines as they come"),
            _option("-n", "--lines", type=_lines, metavar="N", help="the last N lines (all: every line)"),
            _option("-S", "--since", metavar="TIME", help="from then on, as journalctl takes it: today, -1h, ..."),
            _option("-U", "--until", metavar="TIME", help="up to then"),
            _option("-g", "--grep", metavar="PATTERN", help="lines that match a regular expression"),
            _option("-o", "--output", metavar="FORMAT", help="journalctl's output format: short-iso, cat, json, ..."),
            _flag("-r", "--reverse", help="newest first"),
            _flag("--previous", help="the run before this one"),
            _flag("--no-pager", help="do not pipe the output into a pager"),
        ),
    ),
    "events": Verb(
        "events:events",
        "What happened to models, and who asked for it",
        (
            ANY_NAMES,
            _option("-n", "--lines", type=_count(1), default=50, metavar="N", help="the last N events (default: 50)"),
            _option("-S", "--since", metavar="TIME", help="from then on: -90min, today, '2026-11-23 14:05'"),
            _option("-k", "--kind", action="append", metavar="KIND,...", help="only these kinds; repeatable"),
            _flag("-f", "--follow", help="go on with new events as they come"),
        ),
    ),
}

GROUPS = (
    ("Models", ("register", "unregister", "set", "secret", "show", "cat", "repair", "backends")),
    (
        "Life cycle",
        ("start", "stop", "restart", "enable", "disable", "kill", "reset-failed", "wait"),
    ),
    (
        "Status",
        (
            "status",
            "list",
            "is-active",
            "is-enabled",
            "is-failed",
            "check",
            "security",
            "why",
            "doctor",
            "health",
            "url",
            "logs",
            "events",
        ),
    ),
)

HIDDEN = {
    "__complete": Verb(
        "complete:complete",
        "Words for the shell's completion",
        (
            _option("kind", choices=("names", "items", "secret", "settings", "properties", "backends", "kinds")),
            _option("before", nargs="*", metavar="WORD", help="what stands before the word that is completed"),
        ),
    )
}
