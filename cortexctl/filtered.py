"""Another program's output on its way to the terminal or a pipe, without what could steer a terminal."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import IO

from cortexctl.human import strip_sequences

_CHUNK = 1 << 16
"""Bytes of a line that are looked at together; what a server prints may have no end."""


def run(command: Sequence[str], *, as_json: bool, pager: bool) -> int:
    """Run `command` and pass its lines on; returns its exit status. Raises OSError where it cannot be run.

    `pager`: a person at a terminal reads page by page. `as_json`: escape as JSON does, so that it stays JSON.
    """
    sys.stdout.flush()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as source:
        assert source.stdout is not None
        viewer = _viewer() if pager else None
        try:
            _pass_on(source.stdout, viewer.stdin if viewer and viewer.stdin else sys.stdout.buffer, as_json)
        except BrokenPipeError:
            source.terminate()  # nobody reads on: the person has left the pager
            if viewer is None:
                raise
        except KeyboardInterrupt:
            source.terminate()
            raise
        finally:
            if viewer is not None:
                _leave(viewer)
        status = source.wait()
    return status if status >= 0 else 0


def _pass_on(source: IO[bytes], target: IO[bytes], as_json: bool) -> None:
    for line in _lines(source):
        text = line.decode(errors="replace")
        shown = _json(text) if as_json else strip_sequences(text)
        target.write(shown.encode("utf-8", "backslashreplace") + b"\n")
        target.flush()  # whoever follows sees it now


def _lines(source: IO[bytes]) -> Iterator[bytes]:
    while line := source.readline(_CHUNK):
        yield line.rstrip(b"\n")


def _json(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else json.dumps(c)[1:-1] for c in text)


def _viewer() -> subprocess.Popen[bytes] | None:
    """The person's pager, as journalctl chooses it; None where there is none."""
    chosen = next((os.environ[name] for name in ("SYSTEMD_PAGER", "PAGER") if name in os.environ), "less")
    words = shlex.split(chosen)
    if not words or words[0] == "cat" or shutil.which(words[0]) is None:
        return None
    environment = {**os.environ, "LESS": os.environ.get("SYSTEMD_LESS", "FRSXMK")}
    return subprocess.Popen(words, stdin=subprocess.PIPE, env=environment)


def _leave(viewer: subprocess.Popen[bytes]) -> None:
    """Wait until the person has read it: Ctrl+C is for the pager, which goes on."""
    try:
        if viewer.stdin is not None:
            viewer.stdin.close()
    except BrokenPipeError:
        pass
    while True:
        try:
            viewer.wait()
            return
        except KeyboardInterrupt:
            continue
