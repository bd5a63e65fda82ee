"""The verb check: what would keep models from starting."""

from __future__ import annotations

from collections.abc import Sequence

from cortexctl.context import Context, model_call
from cortexctl.errors import FAILURE
from cortexctl.human import clean

_KEYS = ("level", "what", "value", "problem", "remedy")


def check(context: Context) -> int:
    """Each finding as a line; success where none is an error."""
    out, errors = context.out, False
    for name, (found,) in context.on_models(context.args.names, lambda name: model_call(name, "Check")):
        findings = [dict(zip(_KEYS, finding, strict=True)) for finding in found]
        errors = errors or any(finding["level"] == "error" for finding in findings)
        lines = [
            f"{name}: {out.paint(finding['level'], finding['level'])}: {clean(_sentence(found))}"
            for finding, found in zip(findings, found, strict=True)
        ]
        text = "\n".join(lines) or f"{name}: nothing found that would keep it from starting"
        out.result({"Name": name, "findings": findings}, text)
    return context.exit_code or (FAILURE if errors else 0)


def _sentence(finding: Sequence[str]) -> str:
    _, what, value, problem, remedy = finding
    about = f"{what}={value}" if value else what
    return f"{about}: {problem}" + (f"; {remedy}" if remedy else "")
