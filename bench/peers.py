"""What cortexd is compared with, fetched into the bench's own folder: nothing is installed on the machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def prepare(folder: Path) -> dict[str, str]:
    """Fetch all of them; returns why one could not be had, by name. Without cortexd itself there is nothing to measure."""
    folder.mkdir(parents=True, exist_ok=True)
    _cortex(folder / "venv")
    if not (tiny := PROJECT / ".demo" / "tiny.gguf").exists():
        _run(sys.executable, PROJECT / "scripts" / "tiny_gguf.py", tiny)
    problems = {}
    fetchers: dict[str, Callable[[Path], None]] = {
        "supervisor": _supervisor, "pm2": _pm2, "monit": _monit, "llama-server": _llama_server
    }  # fmt: skip
    for name, fetch in fetchers.items():
        try:
            fetch(folder)
        except (OSError, subprocess.SubprocessError) as e:
            problems[name] = _reason(e)
    return problems


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    """The last line that the program said, or the error's own. What a TimeoutExpired carries is bytes, even of a text stream."""
    said: str | bytes = getattr(error, "stderr", None) or str(error)
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    lines = text.strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _run(*command: object, cwd: Path | None = None) -> None:
    subprocess.run(
        [str(word) for word in command],
        cwd=cwd, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600,
    )  # fmt: skip


def _cortex(venv: Path) -> None:
    """As a user has it: not editable, and nothing that only tests need. From a copy, since a build leaves files behind."""
    if not (venv / "bin" / "python").exists():
        _run(sys.executable, "-m", "venv", "--clear", venv)
    copy = venv.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "cortexd", "cortexctl", "dbus"):
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    _run(venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--upgrade", copy, "dbus-fast>=5", "jeepney>=0.8")
    shutil.rmtree(copy)


def _supervisor(folder: Path) -> None:
    if not (program := folder / "supervisor" / "bin" / "supervisord").exists():
        _run(sys.executable, "-m", "venv", "--clear", folder / "supervisor")
        _run(folder / "supervisor" / "bin" / "python", "-m", "pip", "install", "--quiet", "supervisor")
    _run(program, "--version")


def _pm2(folder: Path) -> None:
    npm = folder / "npm"
    if not (program := npm / "node_modules" / ".bin" / "pm2").exists():
        npm.mkdir(exist_ok=True)
        _run("npm", "install", "--prefix", npm, "--no-audit", "--no-fund", "--loglevel=error", "pm2", cwd=folder)
    with tempfile.TemporaryDirectory(prefix="pm2-") as home:  # even to tell its version it starts a daemon there
        try:
            _run("env", f"PM2_HOME={home}", program, "--version")
        finally:
            _run("env", f"PM2_HOME={home}", program, "kill")


def _monit(folder: Path) -> None:
    if not (program := folder / "monit" / "usr" / "bin" / "monit").exists():
        (folder / "monit").mkdir(exist_ok=True)
        _run("apt-get", "download", "monit", cwd=folder / "monit")
        for package in (folder / "monit").glob("*.deb"):
            _run("dpkg-deb", "--extract", package, folder / "monit")
    _run(program, "-V")  # a library that the package depends on may not be here


def _llama_server(folder: Path) -> None:
    _run(PROJECT / "scripts" / "get-llama-server", PROJECT / ".demo" / "llama")
