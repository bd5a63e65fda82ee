"""What the scenarios need: checks, the user's commands, and what systemd and the kernel say.

A scenario is a script that runs from top to bottom, as root, in the machine. What it does as the user `tester` goes
through `user`, which opens no login session: nobody ever logs in to this machine. Its own output and that of its
commands go to the journal, which the host prints when a check fails.
"""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

UID = 1000
HOME = Path("/home/tester")
CLONE = HOME / "clone"
RUNTIME = Path(f"/run/user/{UID}")
HOST = Path("/mnt")  # the folder that the host lends (hostfs)
KEPT = Path("/var/lib/machine")  # what one boot leaves for the next
ENVIRONMENT = {
    "HOME": str(HOME),
    "USER": "tester",
    "LOGNAME": "tester",
    "LANG": "C.UTF-8",
    "PATH": f"{HOME}/.local/bin:/usr/local/bin:/usr/bin:/bin",  # Debian's ~/.profile puts ~/.local/bin there
    "XDG_RUNTIME_DIR": str(RUNTIME),
    "PIP_NO_INDEX": "1",  # the machine has no network
    "PIP_FIND_LINKS": str(HOST / "wheels"),
}

scenario = ""  # SUITE.BOOT.SCENARIO, set by main


class Stop(Exception):
    """What comes next makes no sense: the scenarios of this boot end here."""


def report(line: str) -> None:
    """Add a line to the results. Each is written through: a machine that hangs keeps those it had."""
    print(line, flush=True)
    file = os.open(HOST / "results", os.O_WRONLY | os.O_APPEND | os.O_SYNC)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


def fail(name: str, expected: object, got: object) -> None:
    report(f"FAIL {scenario}.{name}: expected {expected!r}, got {got!r}")


def check(name: str, got: object, expected: object) -> bool:
    """Report whether `got` is what was expected; the scenario goes on either way."""
    if got == expected:
        report(f"PASS {scenario}.{name}")
    else:
        fail(name, expected, got)
    return got == expected


def contains(name: str, text: str, part: str) -> bool:
    """As check, for a text that has to have this part."""
    return check(name, part if part in text else text, part)


def need(name: str, got: object, expected: object) -> None:
    """As check; when it fails, nothing after it makes sense."""
    if not check(name, got, expected):
        raise Stop


def until(probe: Callable[[], Any], expected: object = True, seconds: float = 30) -> Any:
    """Ask `probe` until it gives what is expected, for that long; its last answer."""
    end = time.monotonic() + seconds
    while (got := probe()) != expected and time.monotonic() < end:
        time.sleep(0.1)
    return got


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as root; the journal shows it with its output."""
    print("#" if "user" not in options else "$", *argv, flush=True)
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        **options,
    )
    print(f"{done.stdout}{done.stderr}[status {done.returncode}]", flush=True)
    return done


def user(*argv: str, folder: Path = HOME) -> subprocess.CompletedProcess[str]:
    """Run a command as the user, as from a shell of theirs."""
    return run(*argv, user=UID, group=UID, extra_groups=[], env=ENVIRONMENT, cwd=folder)


def ctl(*argv: str) -> str:
    """What cortexctl prints, on both streams."""
    done = user("cortexctl", *argv)
    return done.stdout + done.stderr


def properties(unit: str) -> dict[str, str]:
    """A user unit's properties as systemd shows them."""
    shown = user("systemctl", "--user", "show", "--all", unit).stdout
    return dict(line.partition("=")[::2] for line in shown.splitlines())


def user_manager() -> str:
    return run("systemctl", "is-active", f"user@{UID}.service").stdout.strip()


def control_group(unit: str) -> Path:
    return Path("/sys/fs/cgroup") / properties(unit)["ControlGroup"].lstrip("/")


def mount_options(pid: str, path: str) -> set[str]:
    """The options of the mount on which a process finds this path: the last one at the longest prefix of it.

    Source: proc_pid_mountinfo(5).
    """
    lines = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    options = {Path(words[4]): set(words[5].split(",")) for words in lines}
    return next(options[place] for place in (Path(path), *Path(path).parents) if place in options)


def process(pid: str) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def inside(pid: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the user in the namespaces of a process."""
    enter = ("nsenter", "--target", pid, "--mount", "--user", f"--setuid={UID}", f"--setgid={UID}")
    return run(*enter, *argv, env=ENVIRONMENT)


def http(url: str, body: object = None) -> tuple[int, Any]:
    """Status and JSON answer of a GET, or of a POST where there is a body; 0 and the reason where nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 0, str(error)


def files_at_home() -> list[str]:
    """Everything in the user's home but the clone."""
    return sorted(str(path.relative_to(HOME)) for path in HOME.rglob("*") if CLONE not in (path, *path.parents))


def keep(name: str, value: object) -> None:
    """Leave a value for a later boot."""
    KEPT.mkdir(exist_ok=True)
    (KEPT / name).write_text(json.dumps(value))


def kept(name: str) -> Any:
    return json.loads((KEPT / name).read_text())
