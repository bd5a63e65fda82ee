"""Verbs about what a model is: register, set, show, cat."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from cortexctl.actions_secret import tell_key
from cortexctl.bus import Call
from cortexctl.context import Context, manager_call, model_call
from cortexctl.errors import USAGE, CtlError
from cortexctl.human import NOT_AVAILABLE, clean, exact_size
from cortexctl.verbs import SETTING_OPTIONS
from cortexd.names import unit_name

_SIZES = ("memory", "MemoryHigh")


def register(context: Context) -> None:
    """Register a model with the settings that were given; the others are the daemon's to fill in."""
    args, out = context.args, context.out
    settings = {name: getattr(args, name) for name, _, _ in SETTING_OPTIONS if hasattr(args, name)}
    if args.env:
        settings["env"] = shlex.join(args.env)
    if args.no_health_check:
        settings["health.enabled"] = "no"
    if args.strict:
        settings["sandbox_required"] = "yes"
    settings.update(_pair(item) for item in args.set)
    options = _surroundings()
    if args.api_key is not None:
        if args.api_key != "auto":  # without repeating it
            raise CtlError("Usage", f"--api-key takes only auto; '{out.program} secret set' takes your own", USAGE)
        options["api_key"] = ("s", "auto")
    path, warnings = context.bus.call(manager_call("Register", "sa{sv}a{sv}", args.name, _variants(settings), options))
    unit = unit_name(args.name)
    record = {"Name": args.name, "Unit": unit, "Path": path, "Warnings": warnings}
    out.result(record, f"Registered {args.name} (unit {unit})")
    context.warn(args.name, warnings)
    if args.api_key:
        for info in context.models([args.name]):
            tell_key(context, args.name, (*info["Secrets"], "?")[0], required=True)
    out.hint(f"Start it with '{out.program} start {args.name}'.")


def _surroundings() -> dict[str, tuple[str, str]]:
    """What the daemon cannot know: where this program looks for programs, and what a relative path means here."""
    return {"search_path": ("s", os.environ.get("PATH", "")), "working_directory": ("s", str(Path.cwd()))}


def set_settings(context: Context) -> None:
    """Change settings of models."""
    out, items = context.out, context.args.items
    names = [item for item in items if "=" not in item]
    settings = dict(_pair(item) for item in items if "=" in item)
    if not names or not settings:
        missing = "no model is named" if settings else "no KEY=VALUE is given"
        raise CtlError("Usage", f"{missing}; see '{out.program} set --help'", USAGE)

    surroundings = _surroundings()

    def call(name: str) -> Call:
        return model_call(name, "Set", "a{sv}a{sv}", _variants(settings), surroundings)

    stale = []
    for name, (restart_needed, warnings) in context.on_models(names, call):
        record = {"Name": name, "RestartNeeded": restart_needed, "Warnings": warnings}
        out.result(record, f"Changed {', '.join(settings)} of {name}")
        context.warn(name, warnings)
        if restart_needed:
            stale.append(name)
    if stale:
        out.note(f"the running server does not have it yet; '{out.program} restart {shlex.join(stale)}' brings it")


def show(context: Context) -> None:
    """Every property and setting of models."""
    wanted = [key for item in context.args.property or () for key in item.split(",") if key]
    for number, info in enumerate(context.models(context.args.names, settings=True, usage=True, limits=True)):
        values = {**{key: value for key, value in info.items() if key != "Settings"}, **info.get("Settings", {})}
        unknown = [key for key in wanted if key not in values]
        if unknown:
            raise CtlError("UnknownProperty", f"a model has no property or setting {unknown[0]!r}")
        chosen = {key: values[key] for key in wanted} if wanted else values
        if context.out.json:
            context.out.result(chosen if wanted else info)
            continue
        if number and not context.args.value:
            context.out.line()
        for key, value in chosen.items():
            text = clean(_text(key, value))
            context.out.line(text if context.args.value else f"{key}={text}")


def cat(context: Context) -> None:
    """The unit files of models."""
    out, first = context.out, True
    for name, (files,) in context.on_models(context.args.names, lambda name: model_call(name, "GetUnitFiles", "")):
        if out.json:
            out.result({"Name": name, "Files": [{"Path": path, "Text": text} for path, text in files]})
            continue
        for path, text in files:
            if not first:
                out.line()
            first = False
            out.line(out.paint(f"# {clean(path)}", "dim"))
            out.line(clean(text, keep="\n\t").rstrip("\n"))


def _pair(item: str) -> tuple[str, str]:
    key, sign, value = item.partition("=")
    if not key or not sign:
        raise CtlError("Usage", f"{item!r} is no KEY=VALUE", USAGE)
    return key, value


def _variants(settings: dict[str, str]) -> dict[str, tuple[str, Any]]:
    return {name: ("s", value) for name, value in settings.items()}


def _text(key: str, value: Any) -> str:
    """A value as `set` takes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "Limits":
        return ", ".join(f"{setting}={effective or 'none'}" for setting, _, effective, _, _ in value)
    if isinstance(value, list):
        return (",".join(value) or "none") if key == "gpus" else shlex.join(value)
    if key in _SIZES and isinstance(value, int):
        return exact_size(value)
    if isinstance(value, float):
        return f"{value:g}"
    return "[not available]" if value == NOT_AVAILABLE else str(value)
