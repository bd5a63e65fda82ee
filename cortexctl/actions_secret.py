"""The verb secret: variables for a model's server whose values nobody is shown again."""

from __future__ import annotations

import sys

from cortexctl.context import Context, manager_call, model_call
from cortexctl.errors import USAGE, CtlError

_MAX_VALUE = 64 * 1024
"""Bytes; the daemon's bound. More is not read, so that a wrong file does not fill the memory."""


def secret(context: Context) -> None:
    """set NAME KEY, unset NAME KEY or list NAME."""
    action, *words = context.args.words
    wanted = {"set": 2, "unset": 2, "list": 1}.get(action)
    help_ = f"see '{context.out.program} secret --help'"
    if wanted is None:
        raise CtlError("Usage", f"{action!r} is none of set, unset and list; {help_}", USAGE)
    if action == "set" and len(words) > wanted:
        # Without repeating it: it may be the value.
        raise CtlError(
            "Usage",
            "the value is asked for, or read from standard input: others can read a command line, and a shell keeps it",
            USAGE,
        )
    if len(words) != wanted:
        raise CtlError("Usage", f"{action} takes {'NAME KEY' if wanted == 2 else 'NAME'}; {help_}", USAGE)
    context.bus.call(manager_call("GetModel", "s", words[0]))  # better known before a secret is typed
    if action == "list":
        _list(context, words[0])
    elif action == "set":
        _set(context, *words)
    else:
        _unset(context, *words)


def _set(context: Context, name: str, key: str) -> None:
    value = _value(f"Value of {key} for {name}: ")
    (restart_needed,) = context.bus.call(model_call(name, "SetSecret", "saya{sv}", key, value, {}))
    context.out.result({"Name": name, "Key": key, "RestartNeeded": restart_needed}, f"Set secret {key} of {name}")
    _tell_restart(context, name, restart_needed)


def _unset(context: Context, name: str, key: str) -> None:
    context.bus.call(model_call(name, "RemoveSecret", "sa{sv}", key, {}))
    restart_needed = any(info["RestartNeeded"] for info in context.models([name]))
    context.out.result({"Name": name, "Key": key, "RestartNeeded": restart_needed}, f"Removed secret {key} of {name}")
    _tell_restart(context, name, restart_needed)


def _list(context: Context, name: str) -> None:
    for info in context.models([name]):
        if context.out.json:
            context.out.result({"Name": name, "Secrets": info["Secrets"]})
            continue
        for key in info["Secrets"]:
            context.out.line(key)


def _tell_restart(context: Context, name: str, needed: bool) -> None:
    if needed:
        program = context.out.program
        context.out.note(f"the running server does not know of it yet; '{program} restart {name}' brings it")


def _value(prompt: str) -> bytes:
    """From the terminal without echo, or all of standard input; one newline at the end does not count."""
    if not sys.stdin.isatty():
        value = sys.stdin.buffer.read(_MAX_VALUE + 2)
        return value.removesuffix(b"\n")
    import getpass

    try:
        return getpass.getpass(prompt).encode("utf-8", "surrogateescape")
    except EOFError:
        raise CtlError("Usage", "no value was given", USAGE) from None
