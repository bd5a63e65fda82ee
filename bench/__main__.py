"""`python -m bench [--short] [ROW...]`: prepares the peers, then measures inside a private `systemd --user`.

Each row is on disk as soon as it is measured, and rows that are not named keep the figures that they had.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import traceback

from bench import peers, report
from bench.measure import Result
from bench.rows import ROWS

FOLDER = peers.PROJECT / ".demo" / "bench"
RESULTS = peers.PROJECT / "bench" / "results.json"
DOCUMENT = peers.PROJECT / "docs" / "performance.md"


def say(text: str) -> None:
    """To whoever waits for it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Returns the exit status: 1 where a row could not be measured. Targets that are missed are no failure."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure cortexd beside its peers.")
    parser.add_argument(
        "--short", action="store_true", help="few models, two runs, figures thrown away: is the harness sound?"
    )
    parser.add_argument("--inside", metavar="PROBLEMS", help=argparse.SUPPRESS)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"only these of: {', '.join(ROWS)}")
    args = parser.parse_args()
    unknown = [row for row in args.rows if row not in ROWS]
    if unknown:
        parser.error(f"unknown row {unknown[0]!r}; there are: {', '.join(ROWS)}")
    rows = args.rows or list(ROWS)
    if args.inside is not None:
        return measure(rows, short=args.short, problems=json.loads(args.inside))
    return outside(rows, short=args.short)


def outside(rows: list[str], *, short: bool) -> int:
    """Fetch what is compared, go inside, and write down what comes out."""
    os.umask(0o022)  # inside, root is another user
    begin = time.monotonic()
    taken = {**report.machine(), "cortexd": report.commit()}
    problems = peers.prepare(FOLDER)
    for name, problem in problems.items():
        say(f"{name} is not available: {problem}")
    out = FOLDER / "out"
    out.mkdir(exist_ok=True)
    out.chmod(0o1777)
    for old in out.glob("*.json"):
        old.unlink()
    short_form = ["--short"] if short else []
    done = subprocess.run(
        [peers.PROJECT / "scripts" / "private-systemd", "--", FOLDER / "venv" / "bin" / "python", "-m", "bench",
         "--inside", json.dumps(problems), *short_form, *rows],
        cwd=peers.PROJECT, check=False,
    )  # fmt: skip
    results, document = RESULTS, DOCUMENT
    if short:  # to the same end, and thrown away
        results, document = out / "results.json", out / "performance.md"
        shutil.copy(DOCUMENT, document)
    for key in rows:
        found = out / f"{key}.json"
        failed = Result(key, problem=f"the bench ended with {done.returncode} before this row").to_json()
        report.save(results, key, json.loads(found.read_text()) if found.exists() else failed, taken)
    report.write(results, document, ROWS)
    say(report.differences(json.loads(results.read_text())["rows"]))
    say(f"took {time.monotonic() - begin:.0f} s")
    return done.returncode


def measure(rows: list[str], *, short: bool, problems: dict[str, str]) -> int:
    """Inside: every row, and its figures as they come."""
    from bench.world import World

    os.environ.pop("PYTHONPYCACHEPREFIX", None)  # what is measured has its modules compiled beside them, as installed
    status = 0
    with World(FOLDER, short=short, problems=problems) as world:
        for key in rows:
            begin = time.monotonic()
            say(f"\n== {key}")
            try:
                result = ROWS[key](world)
            except Exception as e:
                traceback.print_exc()
                status = 1
                result = Result(key, problem=" ".join(f"it failed: {type(e).__name__}: {e}".split()))
            say(report.table(result))
            say(report.summary([result]))
            for note in result.notes:
                say(f"- {note}")
            say(f"({time.monotonic() - begin:.0f} s)")
            (FOLDER / "out" / f"{key}.json").write_text(json.dumps(result.to_json()))
    return status


if __name__ == "__main__":
    sys.exit(main())
