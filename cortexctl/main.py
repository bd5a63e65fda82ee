"""The program: one verb, one function, one exit code."""

from __future__ import annotations

import gc
import os
import sys

from cortexctl.context import Context
from cortexctl.errors import FAILURE, INTERRUPTED, OK, CtlError
from cortexctl.output import Output
from cortexctl.parser import parse
from cortexctl.verbs import HIDDEN, VERBS

TYPE_CHECKING = False  # typing takes as long to import as half of our own modules
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

PROGRAMS = ("cortexctl", "cortex-model")
_BROKEN_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended."""


def main() -> NoReturn:
    """The entry point of both names of the program."""
    # A command lives for some 30 ms: collecting garbage takes 2 of them, and taking the interpreter apart 3.
    gc.set_threshold(100_000)
    name = sys.argv[0].rpartition("/")[2]
    os._exit(run(sys.argv[1:], name if name in PROGRAMS else PROGRAMS[0]))


def run(argv: Sequence[str], program: str) -> int:
    """Run one command line; every failure is a sentence on standard error and an exit code."""
    out = Output(program, as_json="--json" in argv)
    try:
        code = _run(argv, program, out)
        sys.stdout.flush()
        return code
    except CtlError as e:
        out.error(e)
        return e.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _BROKEN_PIPE
    except OSError as e:
        out.error(CtlError("OutputFailed", f"cannot write the output: {e.strerror}"))
        return FAILURE


def _run(argv: Sequence[str], program: str, out: Output) -> int:
    try:
        args = parse(argv, program)
    except SystemExit:  # argparse's, after --help
        return OK
    out.quiet = args.quiet
    verb = VERBS.get(args.verb) or HIDDEN[args.verb]
    module, _, function = verb.run.partition(":")
    action = getattr(__import__(f"cortexctl.actions_{module}", fromlist=[function]), function)
    context = Context(args, out)
    complete = False
    try:
        code: int = action(context) or 0
        complete = True
    finally:
        out.finish(verb.many, complete)
    return context.exit_code or code


if __name__ == "__main__":
    main()
