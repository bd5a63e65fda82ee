"""`python -m cortexctl.docs man|bash|zsh|fish`: manual page and completion, generated from the parser's table."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator

from cortexctl.completion import SHELLS
from cortexctl.errors import EXIT_CODES
from cortexctl.parser import verb_parser
from cortexctl.verbs import GROUPS, VERBS
from cortexd.version import VERSION

PROGRAM = "cortexctl"

_DESCRIPTION = """\
cortexctl, also called cortex-model, registers model servers (vLLM, llama.cpp, Ollama, TGI) as systemd user services, starts
and stops them, and shows how they are. It talks to cortexd over D-Bus, which the bus starts when it is needed.

Verbs that take several models take shell patterns, too; quote them. They act on all models at once, and the first failure
decides the exit status.

Start, stop and restart wait until it is done: a model is started when its server answers, and stopped when its memory and
port are free. Ctrl-C ends the waiting, not the work.

With \\-\\-json, verbs that take several models print an array with an object for each, the others one object. Keys are the
properties of the D-Bus API; values are exact; null is a figure that the machine does not have. An error is an object with the
keys error and message on standard error; in an array it stands in the model's place, beside Name."""

_ENVIRONMENT = (
    ("DBUS_SESSION_BUS_ADDRESS", "The user's message bus; without it, the socket bus in XDG_RUNTIME_DIR."),
    ("PATH", "register looks for the backend's executable there, so an active virtual environment counts."),
    ("NO_COLOR", "Set and not empty: no colours. Without a terminal there are none anyway."),
)
_FILES = (
    (
        "~/.config/systemd/user/cortex\\-NAME.service",
        "The unit of a model. Change it with set, or by drop-ins beside it.",
    ),
    ("~/.cortex/models.db", "Settings and events."),
    ("~/.cortex/secrets/", "Secrets, a file for each model, that a shell can read, too."),
    ("~/.cortex/logs/", "The last lines of failed runs."),
)
_EXAMPLES = (
    ("cortexctl register llama-70b --path meta-llama/Llama-2-70b-hf --gpus 0,1,2,3 --tensor-parallel 4", "Register a model."),
    ("cortexctl enable --now llama-70b", "Start it now and at every boot."),
    ("cortexctl secret set llama-70b HF_TOKEN", "Give it a token for a gated model; the value is asked for."),
    ("cortexctl logs --previous llama-70b", "What the run before this one wrote."),
    ("cortexctl set llama-70b memory=128G health.interval_seconds=10", "Change settings."),
    ("curl \"$(cortexctl url llama-70b)/v1/models\"", "Ask it."),
)  # fmt: skip


def manual() -> str:
    """The manual page, in roff."""
    lines = [
        f'.TH CORTEXCTL 1 "" "cortexd {VERSION}" "cortexctl"',
        ".SH NAME",
        "cortexctl, cortex\\-model \\- systemctl for AI models",
        ".SH SYNOPSIS",
        f".B {PROGRAM}\n.I VERB\n.RI [ NAME ...]\n.RI [ OPTIONS ]",
        ".SH DESCRIPTION",
        _DESCRIPTION.replace("\n\n", "\n.PP\n"),
        *_verbs(),
        ".SH SETTINGS",
        "For",
        '.BR register " \\-\\-set and " set .',
        "An empty value brings the default back. What is marked as live counts at once; everything else needs a restart",
        "of a server that runs.",
        *_settings(),
        ".SH EXIT STATUS",
        *_items((str(code), meaning) for code, meaning in EXIT_CODES),
        ".SH ENVIRONMENT",
        *_items(_ENVIRONMENT),
        ".SH FILES",
        *(f".TP\n.I {name}\n{text}" for name, text in _FILES),
        ".SH EXAMPLES",
        *(f".TP\n{text}\n.RS\n.EX\n{_escaped(line)}\n.EE\n.RE" for line, text in _EXAMPLES),
        ".SH SEE ALSO",
        ".BR systemctl (1),\n.BR journalctl (1),\n.BR systemd.resource\\-control (5),\n.BR systemd.exec (5)",
    ]
    return "\n".join(lines) + "\n"


def _verbs() -> Iterator[str]:
    for title, verbs in GROUPS:
        yield f".SH {title.upper()}"
        for verb in verbs:
            parser = verb_parser(verb, PROGRAM)
            positionals = [a for a in parser._actions if not a.option_strings]
            names = " ".join(_positional(action) for action in positionals)
            yield f".SS {_escaped(verb)} {_escaped(names)}"
            yield _escaped(VERBS[verb].help) + "."
            for action in parser._actions:
                if action.option_strings and action.dest not in ("json", "quiet", "help"):
                    yield from _option(action)
    yield ".SH OPTIONS OF EVERY VERB"
    for action in verb_parser("start", PROGRAM)._actions:
        if action.dest in ("json", "quiet", "help"):
            yield from _option(action)


def _positional(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    several = "..." if action.nargs in ("+", "*") and " " not in name else ""
    return f"[{name}{several}]" if action.nargs == "*" else f"{name}{several}"


def _option(action: argparse.Action) -> Iterator[str]:
    value = f"={action.metavar or '|'.join(action.choices or ())}" if action.nargs is None else ""
    yield f".TP\n.B {_escaped(', '.join(action.option_strings) + value)}"
    yield _sentence(action.help or "")


def _settings() -> Iterator[str]:
    from cortexd.model import SETTINGS

    for row in SETTINGS.values():
        default = "derived" if row.default is None else row.kind.text(row.default) or "none"
        live = "; live" if row.live else ""
        yield f'.TP\n.BI {_escaped(row.name)} " ({_escaped(row.kind.hint)}; default: {_escaped(default)}{live})"'
        yield _sentence(row.doc)


def _items(pairs: object) -> Iterator[str]:
    assert isinstance(pairs, Iterator | tuple)
    for name, text in pairs:
        yield f".TP\n.B {_escaped(name)}\n{_sentence(text)}"


_LITERAL = re.compile(r"[a-z0-9_.-]+[,:|]")
"""How a list of values, or of values and their meanings, begins: one of those is written as it is."""


def _sentence(text: str) -> str:
    if not _LITERAL.match(text):
        text = text[:1].upper() + text[1:]
    text = _escaped(text)
    return text if text.endswith(".") else text + "."


def _escaped(text: str) -> str:
    """Text that roff prints as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    text = text.replace("'", "\\(aq").replace('"', "\\(dq")
    return f"\\&{text}" if text.startswith(".") else text


def main() -> int:
    """Print what the one argument names."""
    makers = {"man": manual, **SHELLS}
    if len(sys.argv) != 2 or sys.argv[1] not in makers:
        print(f"usage: python -m cortexctl.docs {'|'.join(makers)}", file=sys.stderr)
        return 2
    print(makers[sys.argv[1]](), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
