"""The verb secret: variables for a model's server whose values nobody is shown again."""

from __future__ import annotations

import sys

from cortexctl.context import Context, manager_call, model_call
from cortexctl.errors import USAGE, CtlError

_MAX_VALUE = 64 * 1024
"""Bytes; the daemon's bound. More is not read, so that a wrong file does not fill the memory."""

_GENERATED_BYTES = 32
"""As many as cortexd takes for the key of 'register --api-key auto'."""


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
    if context.args.generate and action != "set":
        raise CtlError("Usage", f"--generate goes with set, not with {action}; {help_}", USAGE)
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
    value = _generated() if context.args.generate else _value(f"Value of {key} for {name}: ")
    (restart_needed,) = context.bus.call(model_call(name, "SetSecret", "saya{sv}", key, value, {}))
    context.out.result({"Name": name, "Key": key, "RestartNeeded": restart_needed}, f"Set secret {key} of {name}")
    if context.args.generate:
        tell_key(context, name, key, required=False)
    _tell_restart(context, name, restart_needed)


def tell_key(context: Context, name: str, key: str, *, required: bool) -> None:
    """Where a value lies that was made, and how a client gives it as its key; the value itself is nobody's to print.
    `required`: clients have to give it; else that depends on what the backend does with the variable."""
    out, file = context.out, f"~/.cortex/secrets/{name}/environment"
    if required:
        out.note(f"its clients have to give the key that lies in {file} as {key}, for example:")
    else:
        out.note(f"the value lies in {file} as {key}; a client gives it as its key, for example:")
    out.note(f'(. {file}; echo "Authorization: Bearer ${key}") | curl -H @- "$({out.program} url {name})/v1/models"')


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


def _generated() -> bytes:
    from secrets import token_urlsafe

    return token_urlsafe(_GENERATED_BYTES).encode()


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
