"""The command line: argparse with getopt's manners, one verb at a time.

Only the verb that is asked for gets a parser: making all of them takes longer than asking the daemon.
"""

from __future__ import annotations

import argparse
import sys

from cortexctl.errors import EXIT_CODES, USAGE, CtlError
from cortexctl.output import width
from cortexctl.verbs import GROUPS, HIDDEN, VERBS
from cortexd.version import VERSION

TYPE_CHECKING = False  # typing takes as long to import as half of our own modules
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


class Formatter(argparse.HelpFormatter):
    """argparse's, but an argument whose name shows several words is not shown a second time as repeatable."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        name = str(action.metavar or "")
        return name if " " in name else super()._format_args(action, default_metavar)


class Parser(argparse.ArgumentParser):
    """argparse with our way to report a usage error."""

    def _get_formatter(self) -> Formatter:
        # argparse makes one for each option that is added; left to find the width itself, it loads shutil.
        return Formatter(self.prog, max_help_position=32, width=width(sys.stdout) or 100)

    def error(self, message: str) -> NoReturn:
        raise CtlError("Usage", f"{message}; see '{self.prog} --help'", USAGE)


def verb_parser(verb: str, program: str) -> Parser:
    """The parser of one verb."""
    row = VERBS.get(verb) or HIDDEN[verb]
    parser = Parser(f"{program} {verb}", description=row.help + ".", allow_abbrev=False, add_help=False)
    for add in row.add:
        add(parser)
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors and what was asked for only")
    parser.add_argument("-h", "--help", action="help", help="show this help")
    return parser


def parse(argv: Sequence[str], program: str) -> argparse.Namespace:
    """The options of the verb, which is in `verb`. Raises CtlError for usage errors, SystemExit after --help."""
    position = next((i for i, word in enumerate(argv) if not word.startswith("-")), None)
    if position is None:
        _without_verb(argv, program)
    verb = argv[position]
    if verb not in VERBS and verb not in HIDDEN:
        raise CtlError("Usage", f"unknown verb {verb!r}; {_similar(verb)}see '{program} --help'", USAGE)
    parser = verb_parser(verb, program)
    words = [*argv[:position], *argv[position + 1 :]]
    options, names = _permute(parser, words)
    if names and not any(not action.option_strings for action in parser._actions):
        parser.error(f"{verb} takes no names, but {names[0]!r} was given")
    return parser.parse_args([*options, "--", *names] if names else options, argparse.Namespace(verb=verb))


def _without_verb(argv: Sequence[str], program: str) -> NoReturn:
    if "--version" in argv:
        print(f"{program} {VERSION}")
        raise SystemExit(0)
    if "--help" in argv or "-h" in argv:
        print(overview(program))
        raise SystemExit(0)
    wrong = f"unknown option {argv[0]!r}" if argv else "no verb is given"
    raise CtlError("Usage", f"{wrong}; try '{program} status', or '{program} --help' for all verbs", USAGE)


def _similar(verb: str) -> str:
    import difflib

    close = difflib.get_close_matches(verb, VERBS, n=1)
    return f"did you mean {close[0]!r}? Else " if close else ""


def _permute(parser: Parser, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options, each joined to its value, and the names: what getopt does and argparse does not.

    argparse takes a value that begins with a dash for an option (--extra-args --mlock, --since -1h), and cannot
    have options between names.
    """
    arity = {flag: action.nargs is None for action in parser._actions for flag in action.option_strings}
    options: list[str] = []
    names: list[str] = []
    rest = list(words)[::-1]
    while rest:
        word = rest.pop()
        if word == "--":
            names += rest[::-1]
            break
        if not word.startswith("-") or word == "-":
            names.append(word)
        elif _wants_value(word, arity) and rest and (rest[-1] not in arity or word == "--extra-args"):
            options.append(f"{word}={rest.pop()}" if word.startswith("--") else word + rest.pop())
        else:
            options.append(word)
    return options, names


def _wants_value(word: str, arity: dict[str, bool]) -> bool:
    """Whether the next word is this option's value; -fn is -f and -n."""
    if word.startswith("--"):
        return arity.get(word, False)
    flags = [f"-{letter}" for letter in word[1:]]
    return arity.get(flags[-1], False) and all(arity.get(flag) is False for flag in flags[:-1])


def overview(program: str) -> str:
    """The help without a verb: all verbs by group, and the exit codes."""
    lines = [f"Usage: {program} VERB [NAME...] [OPTIONS]", "", "systemctl for AI models."]
    for title, verbs in GROUPS:
        lines += ["", f"{title}:", *(f"  {verb:<14}{VERBS[verb].help}" for verb in verbs)]
    lines += [
        "",
        "Options of every verb:",
        "  --json        Print results as JSON: an array of objects, one a model",
        "  -q, --quiet   Print errors and what was asked for only",
        "  --version     Print the version",
        "  -h, --help    This help; after a verb, its options",
        "",
        "Exit status:",
        *(f"  {code:<14}{meaning}" for code, meaning in EXIT_CODES),
    ]
    return "\n".join(lines)
