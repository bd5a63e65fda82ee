"""The verb why: the cause of a model's failure, what to do about it, and what it rests on."""

from __future__ import annotations

from cortexctl.context import Context, model_call
from cortexctl.errors import NO_SUCH_MODEL
from cortexctl.human import clean, strip_sequences

TYPE_CHECKING = False  # see cortexctl.bus
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cortexctl.context import Info

_LOG = "Log"
"""The label of log lines, which are shown below one another."""


def why(context: Context) -> int:
    """One sentence for each model, then the remedy and the evidence."""
    models = {info["Name"]: info for info in context.models(context.args.names)}
    calls = {name: model_call(name, "Why") for name in models}
    first = True
    for name, (result,) in context.each(calls):
        if context.out.json:
            evidence = [{"label": label, "text": text} for label, text in result["Evidence"]]
            context.out.result({"Name": name, "State": models[name]["State"], **result, "Evidence": evidence})
            continue
        if not first:
            context.out.line()
        first = False
        _print(context, models[name], result)
    if not models:
        return NO_SUCH_MODEL
    return context.exit_code


def _print(context: Context, info: Info, result: Info) -> None:
    out = context.out
    sentence = clean(f"{info['Name']}: {result['Sentence']}")
    out.line(out.paint(sentence, "bold"))
    if result["Remedy"]:
        out.line(f"  {clean(result['Remedy'])}")
    rows: Sequence[tuple[str, str]] = result["Evidence"]
    if not rows:
        return
    out.line()
    width = max(len(clean(label)) for label, _ in rows) + 1
    last = ""
    for label, text in rows:
        shown = "" if label == last == _LOG else f"{clean(label)}:"
        out.line(f"  {out.paint(f'{shown:>{width}}', 'dim')} {strip_sequences(text)}")
        last = label
