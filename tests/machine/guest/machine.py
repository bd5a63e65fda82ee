"""What the scenarios need: checks, the user's commands, and what systemd and the kernel say.

A scenario is a script that runs from top to bottom, as root, in the machine. What it does as the user `tester` goes
through `user`, which opens no login session: nobody ever logs in to this machine. Its own output and that of its
commands go to the journal, which the host prints when a check fails.
"""

import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    report(f"FAIL {scenario}.{name}: expected {expected!r:.1000}, got {got!r:.1000}")


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


def run(*argv: str, quiet: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as root; the journal shows it, with its output unless `quiet`."""
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
    print(f"{'' if quiet else done.stdout}{done.stderr}[status {done.returncode}]", flush=True)
    return done


def user(*argv: str, folder: Path = HOME, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command as the user, as from a shell of theirs."""
    return run(*argv, quiet=quiet, user=UID, group=UID, extra_groups=[], env=ENVIRONMENT, cwd=folder)


def ctl(*argv: str) -> str:
    """What cortexctl prints, on both streams."""
    done = user("cortexctl", *argv)
    return done.stdout + done.stderr


def properties(unit: str) -> dict[str, str]:
    """A user unit's properties as systemd shows them."""
    shown = user("systemctl", "--user", "show", "--all", unit, quiet=True).stdout
    return dict(line.partition("=")[::2] for line in shown.splitlines())


def user_manager() -> str:
    return run("systemctl", "is-active", f"user@{UID}.service").stdout.strip()


def sessions() -> list[str]:
    """Who is logged in. 256 and later list users' managers, too."""
    lines = run("loginctl", "list-sessions", "--no-legend").stdout.splitlines()
    return [line for line in lines if "manager" not in line]


@contextmanager
def login() -> Iterator[None]:
    """Meanwhile the user has a session, as ssh or a desktop opens one; it has brought their systemd manager."""
    Path("/etc/pam.d/machine").write_text("account required pam_permit.so\nsession required pam_systemd.so\n")
    words = ("--property=PAMName=machine", "--property=User=tester")
    kind = ("--setenv=XDG_SESSION_CLASS=user", "--setenv=XDG_SESSION_TYPE=tty")
    need("login", run("systemd-run", "--unit=session", *words, *kind, "sleep", "infinity").returncode, 0)
    need("it brings the user's manager", until(user_manager, "active"), "active")
    yield
    run("systemctl", "stop", "session.service")
    check("logout", until(sessions, []), [])


def daemon() -> str:
    """The PID of cortexd; 0 where it does not run."""
    return properties("cortexd.service")["MainPID"]


def kill_daemon() -> None:
    """kill -9, and wait until systemd has another one."""
    killed = daemon()
    os.kill(int(killed), signal.SIGKILL)
    need("the daemon comes back", until(lambda: daemon() not in ("0", killed)), True)


def lives(*names: str) -> dict[str, tuple[str, ...]]:
    """Which run of each model this is, with its process, and how often systemd has restarted it."""
    units = {name: properties(f"cortex-{name}.service") for name in names}
    return {name: tuple(unit[key] for key in ("InvocationID", "MainPID", "NRestarts")) for name, unit in units.items()}


def told(name: str) -> dict[str, Any]:
    """What cortexd says of a model."""
    shown: list[dict[str, Any]] = json.loads(user("cortexctl", "show", name, "--json", quiet=True).stdout or "[]")
    return shown[0] if shown else {}


def events(name: str, *kinds: str) -> list[dict[str, Any]]:
    """What the audit log has of a model, oldest first."""
    words = ["--kind", ",".join(kinds)] if kinds else []
    found: list[dict[str, Any]] = json.loads(user("cortexctl", "events", name, *words, "--json").stdout or "[]")
    return found


def control_group(unit: str) -> Path:
    return Path("/sys/fs/cgroup") / properties(unit)["ControlGroup"].lstrip("/")


def figures(file: Path) -> dict[str, int]:
    """A file of a control group that has a key and a number in each line."""
    return {key: int(number) for key, number in (line.split() for line in file.read_text().splitlines())}


def cpu_shares(*groups: Path, seconds: float = 3) -> list[float]:
    """The CPU time of each control group in that time, as a part of one core."""

    def used() -> list[int]:
        return [figures(group / "cpu.stat")["usage_usec"] for group in groups]

    before, began = used(), time.monotonic()
    time.sleep(seconds)  # the measurement itself
    after, elapsed = used(), time.monotonic() - began
    return [(late - early) / 1e6 / elapsed for early, late in zip(before, after, strict=True)]


def desktop_slice(name: str) -> Path:
    """The control group of app, session or background: where a desktop's programs are."""
    user("systemctl", "--user", "start", f"{name}.slice")  # it has none before something is in it
    return control_group(f"{name}.slice")


def slices() -> dict[str, dict[str, str]]:
    """The limits of the desktop's slices, and of all that the user has."""
    groups = [desktop_slice(name) for name in ("app", "session", "background")]
    groups += [groups[0].parent, groups[0].parent.parent]  # user@UID.service, user-UID.slice
    names = ("memory.min", "memory.low", "memory.high", "memory.max", "cpu.max", "cpu.weight", "pids.max")
    return {group.name: {name: (group / name).read_text().strip() for name in names} for group in groups}


PUPPET = HOME / "puppet"


def register_puppet(name: str, *words: str, pause: int = 1) -> None:
    """A model whose server is puppet.py; `pause`: seconds before systemd restarts it."""
    fixed = (
        f"--path {HOME}/tiny.gguf --backend llamacpp --exec {PUPPET} --gpus none --port auto --set RestartSec={pause}"
    )
    need(f"register {name}", user("cortexctl", "register", name, *fixed.split(), *words).returncode, 0)


@contextmanager
def requests(url: str) -> Iterator[list[tuple[int, Any]]]:
    """Meanwhile a client asks the server for tokens, one request after another; their statuses and answers."""
    answers: list[tuple[int, Any]] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(http(f"{url}/v1/completions", {"prompt": "Hello", "max_tokens": 16}))

    client = threading.Thread(target=ask)
    client.start()
    try:
        yield answers
    finally:
        over.set()
        client.join()


def cut_power(seconds: float) -> None:
    """Have the host kill this machine, that long from now; it boots it again."""
    report(f"# cut {max(seconds, 0):.3f}")


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


def runtime_files() -> list[str]:
    """Everything in the user's runtime folder."""
    return sorted(str(path.relative_to(RUNTIME)) for path in RUNTIME.rglob("*"))


def keep(name: str, value: object) -> None:
    """Leave a value for a later boot."""
    KEPT.mkdir(exist_ok=True)
    (KEPT / name).write_text(json.dumps(value))


def kept(name: str) -> Any:
    return json.loads((KEPT / name).read_text())
