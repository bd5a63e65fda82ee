"""Secrets: what lies in the file, what arrives in the server, and that nothing else ever holds a value."""

from __future__ import annotations

import os
import random
import shlex
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortexd import kinds
from cortexd.checks import OPEN_TO_ALL
from cortexd.errors import InvalidConfig, NoSuchSecret, StoreFailed
from cortexd.names import BUS_NAME, MODEL_PREFIX, ROOT_PATH, model_path, unit_name
from cortexd.secrets import MAX_VALUE, NO_SECRETS, Secrets, check_key, check_value, generate
from cortexd.units import quoting
from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.units import systemctl
from tests.support.wait import until

VALUES = st.text(
    st.one_of(st.sampled_from("\"\\$`'#; %=-{}()!~*?[]é€𝄞"), st.characters(exclude_categories=["Cs"])),
    min_size=1,
    max_size=60,
).filter(lambda text: not kinds.has_control(text))
fast = settings(deadline=None, database=None, derandomize=True)


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    (tmp_path / ".cortex").mkdir(mode=0o700)
    return Secrets(tmp_path / ".cortex" / "secrets")


def test_what_is_no_file_costs_no_descriptor(secrets: Secrets) -> None:
    """Health rounds look at it for as long as it lies there."""
    secrets.path("m").mkdir(parents=True, mode=0o700)

    def look() -> int:
        with pytest.raises(StoreFailed, match="m/environment"):
            secrets.known("m")
        return len(list(Path("/proc/self/fd").iterdir()))

    before = look()
    assert {look() for _ in range(50)} == {before}


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("key", ["HF_TOKEN", "API_KEY", "_X", "A1", "VLLM_API_KEY", "LLAMA_API_KEY", "EXTRA"])
def test_keys(key: str) -> None:
    check_key(key, {"CUDA_VISIBLE_DEVICES"})


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("", "use A to Z"), ("hf_token", "use A to Z"), ("1A", "use A to Z"), ("A B", "use A to Z"), ("A=B", "use A to Z"), ("A\n", "use A to Z"),
        ("É", "use A to Z"), ("A" * 200, "use A to Z"), ("../X", "use A to Z"), ("PATH", "which code"), ("LD_PRELOAD", "which code"),
        ("PYTHONPATH", "which code"), ("BASH_ENV", "which code"), ("NOTIFY_SOCKET", "systemd's own"), ("LISTEN_FDS", "systemd's own"),
        ("INVOCATION_ID", "systemd's own"), ("CUDA_VISIBLE_DEVICES", "by cortexd itself"),
    ],
)  # fmt: skip
def test_bad_keys(key: str, says: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^key=.*{says}"):
        check_key(key, {"CUDA_VISIBLE_DEVICES"})


@pytest.mark.parametrize(
    ("value", "says"),
    [(b"", "is empty"), (b"ab\n", "control character"), (b"a\nCANARY", "control"), (b"CAN\0ARY", "control"), (b"CANARY\x1b[2J", "control"),
     (b"CANARY\xff", "UTF-8"), ("CANARY\u2028".encode(), "control"), ("CANARY\ufffe".encode(), "control"), (b"C" * (MAX_VALUE + 1), "longer than the 65536 bytes")],
)  # fmt: skip
def test_a_bad_value_is_refused_and_not_shown(secrets: Secrets, value: bytes, says: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^value: .*{says}") as caught:
        secrets.set("m", "KEY", value)
    assert "CANARY" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert secrets.known("m") == NO_SECRETS


def test_generated_keys_need_no_quoting_and_differ() -> None:
    keys = {generate() for _ in range(50)}
    assert len(keys) == 50
    for key in keys:
        assert len(key) == 43 and shlex.quote(key.decode()) == key.decode() == check_value(key)


# ---------------------------------------------------------------------------------------------------------------- file


def test_set_read_remove(secrets: Secrets) -> None:
    assert secrets.set("m", "HF_TOKEN", b"one")
    first = secrets.known("m")
    assert (first.names, secrets.value("m", "HF_TOKEN"), secrets.value("m", "OTHER")) == (("HF_TOKEN",), "one", None)
    assert not secrets.set("m", "HF_TOKEN", b"one"), "the same again changes nothing"
    assert secrets.known("m") == first
    assert secrets.set("m", "A", b"two") and secrets.set("other", "A", b"three")
    assert secrets.names("m") == ("A", "HF_TOKEN")
    assert secrets.known("m").revision != first.revision
    secrets.remove("m", "HF_TOKEN")
    assert (secrets.names("m"), secrets.value("m", "A")) == (("A",), "two")
    with pytest.raises(NoSuchSecret, match="no secret 'HF_TOKEN'"):
        secrets.check_has("m", "HF_TOKEN")
    secrets.remove("m", "A")
    assert secrets.known("m") == NO_SECRETS
    assert not secrets.path("m").parent.exists()
    secrets.forget("m")
    assert (secrets.models(), secrets.value("other", "A")) == (["other"], "three")


def test_nobody_else_can_read_it(secrets: Secrets) -> None:
    before = os.umask(0)
    try:
        secrets.set("m", "A", b"x")
    finally:
        os.umask(before)
    path = secrets.path("m")
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (path, path.parent, path.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]
    path.parent.chmod(0o755)
    secrets.names("m")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@fast
@given(st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), VALUES, min_size=1, max_size=4))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]) -> None:
    secrets = Secrets(tmp_path_factory.mktemp("secrets") / "s")
    for key, value in values.items():
        secrets.set("m", key, value.encode())
    assert {key: secrets.value("m", key) for key in secrets.names("m")} == values


@pytest.mark.parametrize("where", ["file", "model", "folder"])
def test_a_link_is_not_followed(secrets: Secrets, tmp_path: Path, where: str) -> None:
    secrets.set("m", "A", b"x")
    path = secrets.path("m")
    link = {"file": path, "model": path.parent, "folder": path.parent.parent}[where]
    elsewhere = tmp_path / "elsewhere"
    link.rename(elsewhere)
    link.symlink_to(elsewhere)
    was = {p: p.read_bytes() for p in elsewhere.rglob("*") if p.is_file()} or elsewhere.read_bytes()
    with pytest.raises(StoreFailed, match=r"secrets.*is a link.*move it away"):
        secrets.value("m", "A")
    with pytest.raises(StoreFailed, match="is a link"):
        secrets.set("m", "A", b"other")
    assert was == ({p: p.read_bytes() for p in elsewhere.rglob("*") if p.is_file()} or elsewhere.read_bytes())


@pytest.mark.parametrize(
    "text",
    ["", "A=b\n", 'A="b"\n', '# revision 0123456789abcdef\nA=b\n', '# revision 0123456789abcdef\nA="b" C="d"\n', '# revision 0123456789abcdef\nA="$B"\n',
     "\xff", "# revision 0123456789abcdef\n" + "A" * (600 * 1024)],
)  # fmt: skip
def test_a_file_that_is_not_ours_is_refused(secrets: Secrets, text: str) -> None:
    secrets.set("m", "A", b"x")
    secrets.path("m").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreFailed, match="is not as cortexd wrote it; delete it"):
        secrets.known("m")
    with pytest.raises(StoreFailed):
        secrets.set("m", "B", b"y")
    secrets.forget("m")
    assert secrets.known("m") == NO_SECRETS


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_file_is_refused_at_once(secrets: Secrets, kind: str) -> None:
    secrets.set("m", "A", b"x")
    secrets.path("m").unlink()
    (os.mkfifo if kind == "fifo" else os.mkdir)(secrets.path("m"))
    with pytest.raises(StoreFailed):
        secrets.names("m")


def test_secrets_are_bounded_together(secrets: Secrets) -> None:
    for n in range(7):
        secrets.set("m", f"K{n}", b'"' * 30000 + b"x" * 5000)
    known = secrets.known("m")
    with pytest.raises(InvalidConfig, match="longer than 512 KiB together"):
        secrets.set("m", "MORE", b'"' * 60000)
    assert secrets.known("m") == known


_WRITER = """
import itertools, sys
from pathlib import Path
from cortexd.secrets import Secrets
secrets = Secrets(Path(sys.argv[1]))
print("begun", flush=True)
for n in itertools.count():
    secrets.set("m", "A", b"%d" % n * 4000)
    secrets.set("m", "B", b"y")
    secrets.remove("m", "B")
"""


def test_it_is_whole_whenever_the_writer_is_killed(secrets: Secrets, tmp_path: Path) -> None:
    secrets.set("m", "A", b"0" * 4000)
    for moment in range(15):
        command = [sys.executable, "-c", _WRITER, str(tmp_path / ".cortex" / "secrets")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=lab.PROJECT) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"begun\n"
            time.sleep(moment / 1000)  # any moment is as good as another
            writer.send_signal(signal.SIGKILL)
        value = secrets.value("m", "A")
        assert value is not None and set(secrets.names("m")) <= {"A", "B"}
        assert value == value[: len(value) // 4000] * 4000
    secrets.set("m", "A", b"after")
    assert list(secrets.path("m").parent.iterdir()) == [secrets.path("m")]


# ------------------------------------------------------------------------------------------------------------- systemd


@pytest.mark.parametrize("folder", ["plain", "o d*d%h[1]?\\x ü"])
def test_systemd_and_a_shell_read_exactly_what_was_set(folder: str) -> None:
    root = Path.home() / folder
    secrets = Secrets(root / "secrets")
    root.mkdir()
    numbers = random.Random(4)
    letters = "\"\\$`'#; %=-{}()!~*?[]&|<>^" + "azAZ09éß€𝄞"
    values = {f"K{n}": "".join(numbers.choices(letters, k=numbers.randint(1, 40))) for n in range(100)}
    values |= {
        "ENDS": "  both ends  ",
        "BACK": "ends in \\",
        "N": "\\n\\x41",
        "LONG": "x" * MAX_VALUE,
        "CONTINUED": "a\\",
        "HASH": "# no comment",
    }
    for key, value in values.items():
        secrets.set("m", key, value.encode())
    out, unit = Path.home() / "environ", "environment-file-test.service"
    text = f"[Service]\nType=oneshot\nEnvironment=K1=other\nEnvironmentFile=-{quoting.file_pattern(str(secrets.path('m')))}\n"
    text += f"ExecStart=/bin/sh -c 'cat /proc/self/environ >{out}'\n"
    units = Path.home() / ".config" / "systemd" / "user"
    units.mkdir(parents=True, exist_ok=True)
    (units / unit).write_text(text)
    systemctl("daemon-reload")
    systemctl("start", unit)
    arrived = dict(item.split("=", 1) for item in out.read_text().split("\0") if item)
    assert {key: arrived.get(key) for key in values} == values
    shell = subprocess.run(
        ["/bin/sh", "-c", '. "$1"; for n in $(seq 0 99); do eval "printf \'%s\\0\' \\"\\$K$n\\""; done', "sh", str(secrets.path("m"))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shell.stdout.split("\0")[:-1] == [values[f"K{n}"] for n in range(100)]


# -------------------------------------------------------------------------------------------------------- whole daemon

CANARY = 'canary-5fXq "$HOME" `id` \\ \'#; zZ'
_PART = "canary-5fXq"


def given_secret(name: str, key: str, value: str) -> str:
    """`cortexctl secret set`, with the value on standard input."""
    command = [sys.executable, "-m", "cortexctl", "secret", "set", name, key]
    done = subprocess.run(command, input=value, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert value not in done.stdout + done.stderr
    return done.stdout + done.stderr


def command_lines() -> list[bytes]:
    """The argument list of every process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            found.append(path.read_bytes())
    return found


def request(url: str, *, key: str = "") -> int:
    """The status of a completion of one token, with a key or without."""
    import urllib.error
    import urllib.request

    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    asked = urllib.request.Request(f"{url}/v1/completions", b'{"prompt":"a","max_tokens":1}', headers)
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as e:
        return e.code


def test_a_secret_reaches_the_server_and_nothing_else(
    daemon: Daemon, cortex: Cortex, llama_server: Path, tiny_gguf: Path
) -> None:
    cortex.register_tiny("hush")
    assert given_secret("hush", "LLAMA_API_KEY", CANARY + "\n") == "Set secret LLAMA_API_KEY of hush\n"
    given_secret("hush", "HF_TOKEN", CANARY)
    cortex.run("start", "hush")
    found = cortex.properties("hush")
    assert (found["Secrets"], found["RestartNeeded"]) == (["HF_TOKEN", "LLAMA_API_KEY"], False)
    environ = Path(f"/proc/{found['MainPID']}/environ").read_bytes().split(b"\0")
    assert {f"HF_TOKEN={CANARY}".encode(), f"LLAMA_API_KEY={CANARY}".encode()} <= set(environ)
    assert any(b"llama-server" in line for line in command_lines())
    assert not [line for line in command_lines() if _PART.encode() in line]
    # The server believes its key.
    assert (request(found["URL"]), request(found["URL"], key=CANARY)) == (401, 200)
    # A running server has it only after a restart; also when the daemon was dead in between.
    assert "restart hush" in given_secret("hush", "HF_TOKEN", "other")
    assert cortex.properties("hush")["RestartNeeded"]
    daemon.kill()
    daemon.start()
    assert cortex.properties("hush")["RestartNeeded"]
    given_secret("hush", "HF_TOKEN", CANARY)
    cortex.run("restart", "hush")
    assert not cortex.properties("hush")["RestartNeeded"]
    cortex.run("secret", "unset", "hush", "HF_TOKEN")
    cortex.run("restart", "hush")
    # Neither what is told ...
    told = [
        cortex.out(*words.split())
        for words in (
            "show hush",
            "cat hush",
            "status hush",
            "events hush --json",
            "secret list hush",
            "logs hush -n all",
        )
    ]
    for path in (ROOT_PATH, MODEL_PREFIX.rstrip("/"), model_path("hush")):
        told.append(
            subprocess.run(
                ["busctl", "--user", "introspect", BUS_NAME, path], capture_output=True, text=True, check=True
            ).stdout
        )
    told.append(subprocess.run(["busctl", "--user", "--json=pretty", "call", BUS_NAME, ROOT_PATH, "org.freedesktop.DBus.ObjectManager",
                                "GetManagedObjects"], capture_output=True, text=True, check=True).stdout)  # fmt: skip
    told.append(systemctl("show", unit_name("hush"), "--all").stdout)
    told.append(
        subprocess.run(
            ["journalctl", "--user", "-o", "export"], capture_output=True, text=True, errors="replace", check=True
        ).stdout
    )
    told.append(daemon.log.read_text())
    assert "LLAMA_API_KEY" in told[0] and "secret-set" in told[3] and "secret-removed" in told[3]
    assert not [text for text in told if _PART in text]
    # ... nor what lies anywhere but in its own place.
    for root in (Path.home() / ".config", Path.home() / ".cortex"):
        holding = [p for p in root.rglob("*") if p.is_file() and _PART.encode() in p.read_bytes()]
        assert holding == ([root / "secrets" / "hush" / "environment"] if root.name == ".cortex" else [])
    cortex.run("unregister", "--force", "hush")
    assert not (Path.home() / ".cortex" / "secrets" / "hush").exists()


def test_a_key_of_its_own_from_the_first_start(
    daemon: Daemon, cortex: Cortex, llama_server: Path, tiny_gguf: Path
) -> None:
    done = cortex.run(
        "register", "keyed", "--path", str(tiny_gguf), "--backend", "llamacpp", "--exec", str(llama_server), "--gpus", "none",
        "--memory", "2G", "--port", "auto", "--max-model-len", "256", "--host", "0.0.0.0", "--api-key", "auto",
    )  # fmt: skip
    secrets = Secrets(Path.home() / ".cortex" / "secrets")
    key = secrets.value("keyed", "LLAMA_API_KEY")
    assert key is not None and key not in done.stdout + done.stderr
    assert "~/.cortex/secrets/keyed/environment" in done.stderr and OPEN_TO_ALL not in done.stderr
    cortex.run("start", "keyed")
    url = cortex.properties("keyed")["URL"]
    assert (request(url), request(url, key=key)) == (401, 200)
    # As the program says it is done.
    advice = done.stderr.splitlines()[-1].partition(": ")[2]
    assert advice.startswith("(. ~/.cortex")
    header = subprocess.run(["sh", "-c", advice.partition(" | ")[0]], capture_output=True, text=True, check=True).stdout
    assert header == f"Authorization: Bearer {key}\n"
    cortex.run("stop", "keyed")
    cortex.run("secret", "unset", "keyed", "LLAMA_API_KEY")
    until(lambda: any(OPEN_TO_ALL in w for w in cortex.properties("keyed")["Warnings"]), "the warning")


def copies(pid: int, what: bytes) -> int:
    """How often it is in what a process may write of its memory."""
    found = 0
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, rights, *_ = line.split()
            begin, end = (int(number, 16) for number in place.split("-"))
            if rights.startswith("rw"):
                with suppress(OSError):
                    memory.seek(begin)
                    found += memory.read(end - begin).count(what)
    return found


def test_the_daemon_has_no_secret_in_its_memory_longer_than_it_needs_it(daemon: Daemon, cortex: Cortex) -> None:
    """Nothing holds one, so what comes next takes its place."""
    cortex.register_tiny("m", "--api-key", "auto")
    secret = b"remembered-" + os.urandom(12).hex().encode()
    command = [sys.executable, "-m", "cortexctl", "secret", "set", "m", "X_TOKEN"]
    subprocess.run(command, input=secret, check=True, capture_output=True, cwd=lab.PROJECT)
    cortex.run("start", "m")
    cortex.run("health", "m")  # asked with the key
    file = (Path.home() / ".cortex" / "secrets" / "m" / "environment").read_text()
    key = file.partition('LLAMA_API_KEY="')[2].partition('"')[0].encode()
    assert daemon.process is not None and key and secret.decode() in file
    pid = daemon.process.pid
    assert copies(pid, b"cortexlinux") > 0  # that this way of looking finds anything

    def gone() -> bool:
        cortex.run("show", "m")
        cortex.run("events", "m")
        return copies(pid, secret) == copies(pid, key) == 0

    until(gone, lambda: f"the end of the last copy ({copies(pid, secret)} and {copies(pid, key)} are left)", 60)


def test_a_key_in_the_wrong_place_is_not_repeated(shared_daemon: Daemon) -> None:
    """Over the bus, past the program's own checks."""
    register = ["Register", "sa{sv}a{sv}", "m", "0", "1", "api_key", "s", _PART]
    set_secret = ["SetSecret", "saya{sv}", "HF_TOKEN", "3", "67", "10", "67", "0"]
    Cortex().register_tiny("m")
    for path, interface, call in ((ROOT_PATH, "Manager", register), (model_path("m"), "Model", set_secret)):
        command = ["busctl", "--user", "call", BUS_NAME, path, f"{BUS_NAME}.{interface}", *call]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0 and _PART not in done.stderr and "\n" not in done.stderr.strip(), done.stderr
    assert "control character" in done.stderr
    assert _PART not in shared_daemon.log.read_text()
