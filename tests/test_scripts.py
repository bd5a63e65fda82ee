"""scripts/: the private systemd that the other tests stand on, the installer, and the makers of server and model."""

from __future__ import annotations

import errno
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
SCRIPTS = PROJECT / "scripts"
PRIVATE = str(SCRIPTS / "private-systemd")
DEADLINE = 60.0


def run(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run to the end; both streams as text."""
    return subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE, check=False, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def private() -> str:
    """The path of private-systemd, where this machine lets it work."""
    tried = run(PRIVATE, "true")
    if tried.returncode == 77:
        pytest.skip(tried.stderr.strip())
    assert tried.returncode == 0, tried.stderr
    return PRIVATE


def inside(private: str, script: str, **options: object) -> str:
    """What a script prints in there; it has to succeed."""
    done = run(private, "--", "bash", "-euo", "pipefail", "-c", script, **options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def processes_with(marker: str) -> list[str]:
    """Command lines of this machine that contain a text, this process' own aside."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if marker in line and int(folder.name) != os.getpid():
            found.append(line)
    return found


def wait_until_gone(marker: str) -> None:
    deadline = time.monotonic() + 10
    while processes_with(marker):
        assert time.monotonic() < deadline, processes_with(marker)
        time.sleep(0.02)


def groups_of(pid: int) -> list[Path]:
    """Control groups that a run of private-systemd with that process id has left behind."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [group for mount in mounts if mount[2] == "cgroup2" for group in Path(mount[1]).rglob(f"cortex-lab.{pid}")]


class TestPrivateSystemd:
    @pytest.mark.parametrize(
        ("command", "status"),
        [("exit 0", 0), ("exit 42", 42), ("kill -KILL $$", 137), ("exec no-such-program", 127)],
    )
    def test_exit_status_is_the_commands(self, private: str, command: str, status: int) -> None:
        assert run(private, "bash", "-c", command).returncode == status

    def test_standard_streams_and_folder_are_the_callers(self, private: str) -> None:
        done = run(private, "bash", "-c", "cat; echo error >&2; pwd", input="input\n", cwd=PROJECT)
        assert (done.stdout, done.stderr) == (f"input\n{PROJECT}\n", "error\n")

    def test_manager_and_bus_work(self, private: str) -> None:
        peer = "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.DBus.Peer Ping"
        assert inside(private, f"systemctl --user is-system-running; busctl --user call {peer}") == "running\n"

    def test_journal_tells_units_apart(self, private: str) -> None:
        lines = inside(
            private,
            """
            systemd-run --user --quiet --wait --unit=speaker echo spoken
            for attempt in {1..200}; do
              journalctl --user --unit=speaker --output=cat --quiet | grep spoken && exit
              sleep 0.05
            done
            exit 1
            """,
        )
        assert "spoken" in lines

    def test_sandbox_is_enforced(self, private: str) -> None:
        tried = inside(
            private,
            """
            systemd-run --user --quiet --wait --pipe -p PrivateUsers=true -p ProtectHome=read-only \
              -p ProtectSystem=strict -p PrivateTmp=true -p ProtectKernelModules=true bash -c '
                touch ~/file 2>/dev/null && echo home is writable
                touch /tmp/inner; ls /tmp'
            ls -A ~
            """,
        )
        assert tried == "inner\n"

    def test_scopes_work(self, private: str) -> None:
        assert ".scope" in inside(private, "systemd-run --user --scope --quiet cat /proc/self/cgroup")

    def test_home_is_fresh_and_gone_afterwards(self, private: str) -> None:
        home, lab, left = inside(
            private, 'echo "$HOME"; echo "$CORTEX_LAB"; ls -A ~ | wc -l; touch ~/file'
        ).splitlines()
        assert not home.startswith(("/tmp/", "/var/tmp/"))
        assert (lab, left) == ("1", "0")
        assert not Path(home, "file").exists()

    def test_nothing_survives_the_command(self, private: str) -> None:
        marker = f"sleep 1234{os.getpid()}"
        inside(private, f"setsid {marker} & systemd-run --user --quiet {marker}")
        wait_until_gone(marker)

    def test_nothing_survives_sigterm(self, private: str) -> None:
        marker = f"sleep 4321{os.getpid()}"
        with subprocess.Popen(
            [private, "bash", "-c", f"setsid {marker} & echo up; wait"], stdout=subprocess.PIPE
        ) as lab:
            assert lab.stdout is not None
            assert lab.stdout.readline() == b"up\n"
            lab.terminate()
            assert lab.wait(DEADLINE) == 128 + signal.SIGTERM
        wait_until_gone(marker)
        assert groups_of(lab.pid) == []

    def test_ctrl_c_is_the_commands_to_handle(self, private: str) -> None:
        command = "import time\ntry:\n print('up', flush=True)\n time.sleep(60)\nexcept KeyboardInterrupt:\n raise SystemExit(5)"
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(private, [private, sys.executable, "-c", command])
        output = read_terminal(terminal, until=b"up")
        os.write(terminal, b"\x03")
        output += read_terminal(terminal)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5, output

    @pytest.mark.parametrize("mode", [0o700, 0o755])
    def test_clone_in_a_closed_folder(self, private: str, tmp_path: Path, mode: int) -> None:
        """As under root's home, or where `mktemp -d` made the clone's folder itself."""
        clone = tmp_path / "clone"
        shutil.copytree(SCRIPTS, clone / "scripts")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
        tmp_path.chmod(0o700)
        clone.chmod(mode)
        python = clone / ".venv/bin/python"
        done = run(str(clone / "scripts/private-systemd"), str(python), "-c", "import sys, ssl; print(sys.executable)")
        assert done.stdout == f"{python}\n", done.stderr

    def test_extra_binds(self, private: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("visible")
        environment = {**os.environ, "EXTRA_BINDS": str(tmp_path / "file")}
        assert inside(private, f"cat {tmp_path}/file", env=environment) == "visible"

    def test_network_is_its_own(self, private: str) -> None:
        assert inside(private, "cut -d: -f1 /proc/net/dev | tail -n +3").split() == ["lo"]
        assert inside(private, "ip -brief address show lo").split()[2] == "127.0.0.1/8"

    def test_one_inside_another(self, private: str) -> None:
        """The inner one is an ordinary user's, whoever runs the tests."""
        assert inside(private, f"{PRIVATE} systemctl --user is-system-running") == "running\n"

    def test_says_what_is_missing(self, tmp_path: Path) -> None:
        for tool in ("bash", "realpath", "dirname"):
            (tmp_path / tool).symlink_to(shutil.which(tool) or "")
        done = run("bash", PRIVATE, "true", env={"PATH": str(tmp_path)})
        assert done.returncode == 77
        assert done.stderr == (
            "private-systemd: unshare is missing: install systemd, util-linux and iproute2 (as root: make deps)\n"
        )


def read_terminal(terminal: int, until: bytes | None = None) -> bytes:
    """What appears on a terminal, up to some text or its end."""
    output = b""
    while until is None or until not in output:
        try:
            part = os.read(terminal, 4096)
        except OSError as e:
            if e.errno != errno.EIO:  # Linux' way to say that nobody has it open any more
                raise
            part = b""
        if not part:
            assert until is None, output
            break
        output += part
    return output


class TestInstall:
    """The clone's own virtual environment stands in for the one that `make install` makes; whole machines try that."""

    INSTALL = f"{SCRIPTS}/install --venv {Path(sys.executable).parent.parent}"
    LISTING = "find ~ -path ~/.cache -prune -o -path ~/.cortex -prune -o -print | sort"

    def test_everything_that_it_makes_is_removed(self, private: str) -> None:
        inside(
            private,
            f"""
            mkdir -p ~/.local/share/bash-completion/completions; touch ~/.local/share/bash-completion/completions/mine
            {self.LISTING} >/tmp/before
            {self.INSTALL}; {self.INSTALL}
            systemctl --user is-active cortexd; systemctl --user is-enabled cortexd
            {SCRIPTS}/uninstall
            {self.LISTING} | diff /tmp/before -
            {SCRIPTS}/uninstall | grep "nothing is installed"
            ! systemctl --user cat cortexd 2>/dev/null
            """,
        )

    def test_programs_manual_and_units_are_found(self, private: str) -> None:
        inside(
            private,
            f"""
            {self.INSTALL}
            export PATH=~/.local/bin:$PATH
            cortexctl --version; cortex-model --version
            [[ -s ~/.local/share/man/man1/cortexctl.1 && -s ~/.local/share/man/man1/cortex-model.1 ]]
            systemctl --user cat cortex.slice
            output=$(systemd-analyze --user --man=no verify cortexd.service 2>&1); echo "$output"; [[ -z $output ]]
            """,
        )

    def test_the_bus_starts_the_daemon(self, private: str) -> None:
        inside(
            private,
            f"""
            {self.INSTALL}
            systemctl --user stop cortexd
            ~/.local/bin/cortexctl list
            systemctl --user is-active cortexd
            """,
        )

    def test_registered_models_are_not_left_without_their_manager(self, private: str) -> None:
        inside(
            private,
            f"""
            {self.INSTALL}
            ~/.local/bin/cortexctl register here --path org/model --backend vllm --exec /bin/true
            ! {SCRIPTS}/uninstall 2>/tmp/refusal
            grep -F "models are registered (here)" /tmp/refusal
            systemctl --user is-active cortexd
            REMOVE_MODELS=1 {SCRIPTS}/uninstall
            [[ -z $(ls ~/.config/systemd/user/cortex-* 2>/dev/null) ]]
            """,
        )

    def test_does_not_overwrite_what_is_not_its_own(self, private: str) -> None:
        refusal = inside(
            private,
            f"mkdir -p ~/.local/bin; echo mine >~/.local/bin/cortexctl; ! {self.INSTALL} 2>&1; cat ~/.local/bin/cortexctl",
        )
        assert "is not of this installation: remove it first" in refusal
        assert refusal.endswith("mine\n")

    def test_needs_a_user_manager(self) -> None:
        done = run(str(SCRIPTS / "install"), env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"})
        assert done.returncode == 1
        assert "user manager" in done.stderr


class TestLlamaServer:
    @pytest.fixture
    def made(self, tmp_path: Path) -> Iterator[Path]:
        """A folder with a server that works, and its contents as they were."""
        server = tmp_path / "llama" / "llama-server"
        server.parent.mkdir()
        server.write_text("#!/bin/sh\necho version: 1\n")
        server.chmod(0o755)
        yield server.parent
        assert server.read_text().endswith("version: 1\n")

    def test_leaves_one_that_works_alone(self, made: Path) -> None:
        assert run(str(SCRIPTS / "get-llama-server"), str(made)).returncode == 0
        assert [file.name for file in made.iterdir()] == ["llama-server"]

    def test_does_not_replace_a_folder_of_other_things(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        done = run(str(SCRIPTS / "get-llama-server"), str(tmp_path))
        assert done.returncode == 1
        assert "has something else in it: name another folder" in done.stderr
        assert (tmp_path / "file").exists()

    def test_without_apt_it_says_what_to_do(self, tmp_path: Path) -> None:
        for tool in ("bash", "realpath"):
            (tmp_path / tool).symlink_to(shutil.which(tool) or "")
        done = run("bash", str(SCRIPTS / "get-llama-server"), str(tmp_path / "new"), env={"PATH": str(tmp_path)})
        assert done.returncode == 1
        assert "put a llama-server of your own on PATH" in done.stderr
        assert not (tmp_path / "new").exists()


def test_tiny_model_is_always_the_same(tmp_path: Path) -> None:
    for name in "a", "b":
        subprocess.run([sys.executable, SCRIPTS / "tiny_gguf.py", tmp_path / name], check=True)
    first, second = ((tmp_path / name).read_bytes() for name in "ab")
    assert first == second
    assert first.startswith(b"GGUF")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


# ---------------------------------------------------------------------------------------------------------------- .ci/run


@pytest.fixture
def ci(tmp_path: Path) -> Path:
    """What CI runs, with a make that has nothing to do but to fail where it is told to."""
    script = tmp_path / ".ci" / "run"
    script.parent.mkdir()
    shutil.copy(PROJECT / ".ci" / "run", script)
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    make.write_text('#!/bin/sh\n[ "$*" != "$FAILING" ]\n')
    make.chmod(0o755)
    return script


def ci_run(script: Path, failing: str = "") -> tuple[int, list[str]]:
    path = f"{script.parents[1]}/bin:{os.environ['PATH']}"
    done = run(str(script), env={**os.environ, "PATH": path, "FAILING": failing})
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_ci_says_which_of_its_targets_failed(ci: Path) -> None:
    status, lines = ci_run(ci)
    assert (status, lines[-1]) == (0, "== passed") and not any("longer" in line for line in lines)
    assert [line for line in lines if line.startswith("== make") and " took " not in line] == [
        "== make test", "== make test-private", "== make test-machine", "== make soak MINUTES=1", "== make bench SHORT=1"
    ]  # fmt: skip
    status, lines = ci_run(ci, "test-machine")
    assert (status, lines[-1]) == (1, "== failed: test-machine")
    assert "== make bench SHORT=1" in lines


@pytest.mark.parametrize(("target", "minutes"), [("test", 20), ("test-machine", 30)])
def test_ci_says_what_took_longer_than_it_may(ci: Path, target: str, minutes: int) -> None:
    bound = f"[{target}]={minutes}"
    text = ci.read_text()
    assert text.count(bound) == 1
    ci.write_text(text.replace(bound, f"[{target}]=0"))
    status, lines = ci_run(ci)
    assert status == 0, "a machine that is busy fails nothing"
    assert lines[-2:] == [f"== make {target} took longer than the 0 minutes it may take", "== passed"]
