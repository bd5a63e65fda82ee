"""The life of a model from register to unregister: the real command line, daemon, systemd and llama-server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.fixtures import Daemon
from tests.support.wait import until


@pytest.fixture(scope="module")
def cortex(shared_daemon: Daemon) -> Cortex:
    """The command line; every test uses models of its own names."""
    return Cortex()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an executable of each backend's name: enough to register, not to serve."""
    folder = tmp_path_factory.mktemp("programs")
    for name in ("vllm", "text-generation-launcher", "ollama", "llama-server"):
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def registered(cortex: Cortex, request: pytest.FixtureRequest) -> Iterator[str]:
    """A model that llama-server can serve, named after the test; gone afterwards."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:60]
    cortex.register_tiny(name)
    yield name
    cortex.run("unregister", "--force", name, check=False)


class _AlwaysWell(BaseHTTPRequestHandler):
    """Answers 200 to everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def unit_lines(cortex: Cortex, name: str) -> list[str]:
    """The generated unit, line by line."""
    return cortex.out("cat", name).splitlines()


def systemd(name: str, *properties: str) -> dict[str, str]:
    """What systemd itself says of a model's unit."""
    wanted = [f"--property={p}" for p in properties]
    text = subprocess.run(
        ["systemctl", "--user", "show", f"cortex-{name}.service", *wanted], capture_output=True, text=True, check=True
    ).stdout
    return dict(line.split("=", 1) for line in text.splitlines())


def register_with(cortex: Cortex, programs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`register` with the stand-in programs on the caller's PATH."""
    return cortex.run("register", *arguments, path=f"{programs}:{os.environ['PATH']}")


class TestModelConfig:
    """Settings: the four command lines, defaults, derived values, and every refusal."""

    @pytest.fixture(autouse=True)
    def clean(self, cortex: Cortex) -> Iterator[None]:
        yield
        cortex.run("unregister", "--force", "*", check=False)

    def test_vllm_with_multiple_gpus(self, cortex: Cortex, programs: Path) -> None:
        line = "llama-70b --path meta-llama/Llama-2-70b-hf --backend vllm --gpus 0,1,2,3 --tensor-parallel 4 --memory 128G --max-model-len 8192"
        register_with(cortex, programs, *line.split())
        lines = unit_lines(cortex, "llama-70b")
        (start,) = [text for text in lines if text.startswith("ExecStart=")]
        assert f'"{programs}/vllm" "serve" "meta-llama/Llama-2-70b-hf"' in start
        for option in ('"--tensor-parallel-size" "4"', '"--max-model-len" "8192"', '"--gpu-memory-utilization" "0.9"'):
            assert option in start
        assert {"MemoryMax=128G", "MemoryHigh=120G", 'Environment="CUDA_VISIBLE_DEVICES=0,1,2,3"'} <= set(lines)
        assert 'Environment="HIP_VISIBLE_DEVICES=0,1,2,3"' in lines

    def test_quantized_model_with_awq(self, cortex: Cortex, programs: Path) -> None:
        line = "llama-awq --path TheBloke/Llama-2-70B-AWQ --backend vllm --quantization awq --gpus 0"
        register_with(cortex, programs, *line.split())
        assert '"--quantization" "awq"' in cortex.out("cat", "llama-awq")

    def test_local_gguf(self, cortex: Cortex, programs: Path, tmp_path: Path) -> None:
        model = tmp_path / "llama-7b.Q4_K_M.gguf"
        model.write_bytes(b"GGUF" + bytes(100))
        line = f"local-gguf --path {model} --backend llamacpp --port 8080"
        register_with(cortex, programs, *line.split())
        text = cortex.out("cat", "local-gguf")
        assert f'"-m" "{model}"' in text and '"--port" "8080"' in text
        for foreign in ("tensor-parallel-size", "gpu-memory-utilization", "max-model-len"):
            assert foreign not in text

    def test_tgi_for_production(self, cortex: Cortex, programs: Path) -> None:
        line = "tgi-prod --path bigscience/bloom-7b1 --backend tgi --gpus 0,1 --tensor-parallel 2 --host 0.0.0.0 --port 8000"
        done = register_with(cortex, programs, *line.split())
        text = cortex.out("cat", "tgi-prod")
        assert '"--model-id" "bigscience/bloom-7b1" "--hostname" "0.0.0.0" "--port" "8000" "--num-shard" "2"' in text
        assert "0.0.0.0" in done.stderr  # anybody on the network could use it

    def test_a_common_port_is_a_warning(self, cortex: Cortex, programs: Path) -> None:
        register_with(cortex, programs, "one", "--path", "a/b")
        done = register_with(cortex, programs, "two", "--path", "a/b")
        assert "port=8000" in done.stderr and "one" in done.stderr

    def test_defaults(self, cortex: Cortex, programs: Path) -> None:
        register_with(cortex, programs, "plain", "--path", "org/model")
        model = cortex.properties("plain")
        settings = model["Settings"]
        expected = {
            "memory": 32 * 2**30, "MemoryHigh": 28 * 2**30, "cpu": 4.0, "CPUWeight": 100, "IOWeight": 100, "port": 8000,
            "host": "127.0.0.1", "gpus": ["0"], "max_model_len": 4096, "tensor_parallel": 1, "backend": "vllm",
            "ProtectSystem": "strict", "ProtectHome": "read-only", "PrivateTmp": True, "PrivateDevices": False,
            "health.enabled": True, "health.endpoint": "/health", "health.interval_seconds": 30.0,
            "health.timeout_seconds": 10.0, "health.max_failures": 3, "health.startup_delay_seconds": 60.0,
            "health.startup_timeout_seconds": 3600.0, "RestartSec": 10.0, "StartLimitIntervalSec": 300.0,
            "StartLimitBurst": 5, "Restart": "always",
        }  # fmt: skip
        assert {key: settings[key] for key in expected} == expected
        assert model["State"] == "stopped"

    @pytest.mark.parametrize(
        ("memory", "high"), [("32G", "28G"), ("128G", "120G"), ("8G", "7G"), ("infinity", "infinity")]
    )
    def test_memory_high_follows_memory(self, cortex: Cortex, programs: Path, memory: str, high: str) -> None:
        register_with(cortex, programs, "m", "--path", "a/b", "--memory", memory)
        assert f"MemoryHigh={high}" in unit_lines(cortex, "m")

    def test_hardening_can_be_changed(self, cortex: Cortex, programs: Path) -> None:
        register_with(cortex, programs, "m", "--path", "a/b")
        cortex.run("set", "m", "ProtectHome=tmpfs", "PrivateTmp=no", "NoNewPrivileges=false")
        assert {"ProtectHome=tmpfs", "PrivateTmp=false", "NoNewPrivileges=false"} <= set(unit_lines(cortex, "m"))

    def test_an_empty_value_brings_the_default_back(self, cortex: Cortex, programs: Path) -> None:
        register_with(cortex, programs, "m", "--path", "a/b", "--memory", "8G")
        cortex.run("set", "m", "memory=")
        assert "MemoryMax=32G" in unit_lines(cortex, "m")

    def test_no_health_check_keeps_readiness(self, cortex: Cortex, programs: Path) -> None:
        register_with(cortex, programs, "m", "--path", "a/b", "--no-health-check")
        assert cortex.properties("m")["Settings"]["health.enabled"] is False
        assert any(line.startswith("ExecStartPost=") for line in unit_lines(cortex, "m"))

    def test_extra_args_arrive_word_by_word(self, cortex: Cortex, programs: Path) -> None:
        register_with(cortex, programs, "m", "--path", "a/b", "--extra-args", "--seed 1 --title 'a b' --x=%d;$HOME")
        assert '"--seed" "1" "--title" "a b" "--x=%%d;$HOME"' in cortex.out("cat", "m")

    @pytest.mark.parametrize(
        ("arguments", "field", "remedy"),
        [
            (["--port", "70000"], "port", "1 to 65535"),
            (["--port", "0"], "port", "1 to 65535"),
            (["--memory", "32X"], "memory", "512M"),
            (["--cpu", "many"], "cpu", "number"),
            (["--gpus", "0,0"], "gpus", "twice"),
            (["--gpus", "a;b"], "gpus", "none"),
            (["--tensor-parallel", "2"], "tensor_parallel", "--gpus"),
            (["--quantization", "eetq"], "quantization", "awq"),
            (["--extra-args", "'unbalanced"], "extra_args", "quotes"),
            (["--extra-args", "two\nlines"], "extra_args", "control"),
            (["--backend", "nope"], "backend", "llamacpp"),
            (["--host", "example.com"], "host", "127.0.0.1"),
            (["--exec", "/no/such/file"], "exec", "executable"),
            (["--gpu-memory-utilization", "1.5"], "gpu_memory_utilization", "0.01 to 1"),
            (["--set", "health.intervall=3"], "health.intervall", "health.interval_seconds"),
            (["--set", "MemoryHigh=64G"], "MemoryHigh", "memory"),
        ],
    )
    def test_bad_settings_change_nothing(
        self, cortex: Cortex, programs: Path, arguments: list[str], field: str, remedy: str
    ) -> None:
        done = cortex.run("register", "bad", "--path", "a/b", *arguments, check=False, path=f"{programs}:/usr/bin:/bin")
        assert done.returncode in (1, 2)
        assert field in done.stderr.replace("-", "_").replace("gpu_memory", "gpu_memory") or field in done.stderr
        assert remedy in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert cortex.run("status", "bad", check=False).returncode == 4
        assert not (Path.home() / ".config/systemd/user/cortex-bad.service").exists()

    @pytest.mark.parametrize("name", ["-x", "a b", "ä", "a/b", "x" * 65, ".hidden", "a@b", "a.service", ""])
    def test_bad_names_are_refused(self, cortex: Cortex, programs: Path, name: str) -> None:
        done = cortex.run("register", "--path", "a/b", "--", name, check=False, path=f"{programs}:/usr/bin:/bin")
        assert done.returncode in (1, 2) and "name" in done.stderr.lower()
        assert json.loads(cortex.out("list", "--json")) == []

    def test_names_may_have_every_allowed_character(self, cortex: Cortex, programs: Path) -> None:
        register_with(cortex, programs, "7B.q4_K:v1-x", "--path", "a/b")
        assert systemd("7B.q4_K:v1-x", "LoadState")["LoadState"] == "loaded"
        assert cortex.properties("7B.q4_K:v1-x")["Name"] == "7B.q4_K:v1-x"

    def test_a_missing_or_wrong_gguf_is_refused(self, cortex: Cortex, programs: Path, tmp_path: Path) -> None:
        wrong = tmp_path / "text.gguf"
        wrong.write_text("not a model")
        for path, word in ((tmp_path / "none.gguf", "exist"), (wrong, "GGUF")):
            done = cortex.run(
                "register",
                "bad",
                "--path",
                str(path),
                "--backend",
                "llamacpp",
                check=False,
                path=f"{programs}:/usr/bin",
            )
            assert done.returncode == 1 and word in done.stderr and str(path) in done.stderr

    def test_a_missing_executable_names_the_remedy(self, cortex: Cortex) -> None:
        done = cortex.run("register", "bad", "--path", "a/b", "--backend", "tgi", check=False, path="/usr/bin:/bin")
        assert done.returncode == 1 and "--exec" in done.stderr and "text-generation-launcher" in done.stderr

    def test_two_registrations_of_one_name(self, cortex: Cortex, programs: Path) -> None:
        register_with(cortex, programs, "twice", "--path", "a/b")
        done = cortex.run("register", "twice", "--path", "c/d", check=False, path=f"{programs}:/usr/bin")
        assert done.returncode == 1 and "set" in done.stderr
        assert cortex.properties("twice")["Settings"]["path"] == "a/b"

    def test_auto_port_is_free_and_kept(self, cortex: Cortex, programs: Path) -> None:
        for name in ("p1", "p2"):
            register_with(cortex, programs, name, "--path", "a/b", "--port", "auto")
        ports = [cortex.properties(name)["Settings"]["port"] for name in ("p1", "p2")]
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        assert ports[0] != ports[1] and all(1024 <= port < low for port in ports)
        cortex.run("set", "p1", "memory=8G")
        assert cortex.properties("p1")["Settings"]["port"] == ports[0]


class TestServiceFile:
    """The unit on disk: whose it is, and that it survives what people do."""

    def test_every_line_is_understood_by_systemd(self, cortex: Cortex, registered: str) -> None:
        unit = systemd(registered, "FragmentPath")["FragmentPath"]
        done = subprocess.run(
            ["systemd-analyze", "--user", "verify", unit], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_it_is_private_and_marked(self, cortex: Cortex, registered: str) -> None:
        path = Path(cortex.properties(registered)["FragmentPath"])
        assert path == Path.home() / f".config/systemd/user/cortex-{registered}.service"
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_text().startswith("# Generated by cortexd ")

    def test_drop_ins_survive_a_change(self, cortex: Cortex, registered: str) -> None:
        drop_in = Path(cortex.properties(registered)["FragmentPath"] + ".d") / "mine.conf"
        drop_in.parent.mkdir()
        drop_in.write_text("[Service]\nNice=5\n")
        cortex.run("set", registered, "memory=1G")
        assert systemd(registered, "Nice")["Nice"] == "5"
        assert "Nice=5" in cortex.out("cat", registered)
        drop_in.unlink()
        drop_in.parent.rmdir()

    def test_an_edited_unit_is_kept_and_reported(self, cortex: Cortex, registered: str) -> None:
        path = Path(cortex.properties(registered)["FragmentPath"])
        path.write_text(path.read_text().replace("TasksMax=512", "TasksMax=99"))
        assert "edited by hand" in cortex.fails("set", registered, "memory=1G")
        assert "TasksMax=99" in path.read_text()
        assert cortex.properties(registered)["Settings"]["memory"] == 2 * 2**30

    def test_a_strangers_unit_is_never_overwritten(self, cortex: Cortex, programs: Path) -> None:
        path = Path.home() / ".config/systemd/user/cortex-taken.service"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[Service]\nExecStart=/bin/true\n")
        done = cortex.run("register", "taken", "--path", "a/b", check=False, path=f"{programs}:/usr/bin")
        assert done.returncode == 1 and str(path) in done.stderr
        assert path.read_text() == "[Service]\nExecStart=/bin/true\n"
        path.unlink()

    def test_a_deleted_unit_is_written_again_at_start(self, cortex: Cortex, registered: str) -> None:
        path = Path(cortex.properties(registered)["FragmentPath"])
        path.unlink()
        cortex.run("start", registered)
        assert path.exists() and cortex.out("is-active", registered).strip() == "ready"


class TestLife:
    """Start, stop, restart and what comes between, with a real server."""

    def test_start_means_ready(self, cortex: Cortex, registered: str) -> None:
        cortex.run("start", registered)
        request = urllib.request.Request(
            cortex.out("url", registered).strip() + "/completion",
            data=json.dumps({"prompt": "Hello", "n_predict": 4}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer)["tokens_predicted"] == 4
        assert systemd(registered, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}

    def test_systemctl_alone_means_ready_too(self, cortex: Cortex, registered: str) -> None:
        url = cortex.out("url", registered).strip()
        subprocess.run(["systemctl", "--user", "start", f"cortex-{registered}"], check=True)
        with urllib.request.urlopen(url + "/health", timeout=5) as answer:
            assert answer.status == 200
        cortex.until_state(registered, "ready")

    def test_stop(self, cortex: Cortex, registered: str) -> None:
        cortex.run("start", registered)
        cortex.run("stop", registered)
        model = cortex.properties(registered)
        assert (model["State"], model["ActiveState"], model["Result"]) == ("stopped", "inactive", "success")
        port = model["Settings"]["port"]
        with socket.socket() as sock:  # free again when stop returns
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))

    def test_start_and_stop_of_what_is_so_already(self, cortex: Cortex, registered: str) -> None:
        cortex.run("stop", registered)
        cortex.run("start", registered)
        run = cortex.properties(registered)["InvocationID"]
        cortex.run("start", registered)
        assert cortex.properties(registered)["InvocationID"] == run

    def test_restart_is_another_run(self, cortex: Cortex, registered: str) -> None:
        cortex.run("start", registered)
        before = cortex.properties(registered)
        cortex.run("restart", registered)
        after = cortex.properties(registered)
        assert after["State"] == "ready" and after["InvocationID"] != before["InvocationID"]

    def test_a_killed_server_comes_back(self, cortex: Cortex, registered: str) -> None:
        cortex.run("set", registered, "RestartSec=0.2")
        cortex.run("start", registered)
        before = cortex.properties(registered)
        os.kill(before["MainPID"], signal.SIGKILL)
        after = until(
            lambda: (
                (m := cortex.properties(registered))["InvocationID"] != before["InvocationID"]
                and m["State"] == "ready"
                and m
            ),
            "the next run",
        )
        assert after["NRestarts"] == 1
        messages = [e["Message"] for e in cortex.json("events", registered)]
        assert any("SIGKILL from outside" in message for message in messages), messages
        assert not any(e["Kind"] == "failed" for e in cortex.json("events", registered))

    def test_what_a_person_stopped_stays_stopped(self, cortex: Cortex, registered: str) -> None:
        cortex.run("set", registered, "RestartSec=60")
        cortex.run("start", registered)
        os.kill(cortex.properties(registered)["MainPID"], signal.SIGKILL)
        cortex.until_state(registered, "restarting")
        cortex.run("stop", registered)
        assert cortex.properties(registered)["State"] == "stopped"

    def test_a_server_that_ends_by_itself_and_well_is_not_taken_for_stopped(
        self, cortex: Cortex, registered: str
    ) -> None:
        """llama-server does on SIGTERM, whoever sent it."""
        cortex.run("start", registered)
        os.kill(cortex.properties(registered)["MainPID"], signal.SIGTERM)
        cortex.until_state(registered, "stopped")
        why = "the server ended by itself with status 0; not restarted (Restart=on-failure)"
        assert cortex.properties(registered)["StateReason"] == why
        (told,) = (event for event in cortex.json("events", registered) if event["Kind"] == "exited")
        assert (told["Message"], told["Priority"]) == (why, "warning")
        assert cortex.json("why", registered)[0]["Cause"] == "exited"

    def test_a_stop_that_needs_sigkill_ends_stopped_with_a_warning(self, cortex: Cortex, registered: str) -> None:
        drop_in = Path(cortex.properties(registered)["FragmentPath"] + ".d") / "deaf.conf"
        drop_in.parent.mkdir()
        drop_in.write_text("[Service]\nKillSignal=SIGCONT\nTimeoutStopSec=0.5\n")  # which ends nothing
        subprocess.run(["systemctl", "--user", "daemon-reload"], check=True)
        cortex.run("start", registered)
        assert "killed" in cortex.run("stop", registered).stderr
        model = cortex.properties(registered)
        assert (model["State"], model["ActiveState"]) == ("stopped", "inactive")
        assert any(
            e["Kind"] == "stop-unclean" and e["Priority"] == "warning" for e in cortex.json("events", registered)
        )
        drop_in.unlink()
        drop_in.parent.rmdir()

    def test_stop_while_it_starts(self, cortex: Cortex, registered: str) -> None:
        cortex.run("set", registered, "health.endpoint=/never")
        cortex.run("start", "--no-block", registered)
        cortex.until_state(registered, "starting")
        cortex.run("stop", registered)
        model = cortex.properties(registered)
        assert (model["State"], model["ActiveState"], model["Result"]) == ("stopped", "inactive", "success")

    def test_a_start_that_fails_says_why(self, cortex: Cortex, registered: str) -> None:
        cortex.run("set", registered, "extra_args=--no-such-option", "RestartSec=60")
        error = cortex.fails("start", registered)
        assert "does not know the option --no-such-option" in error and "cortexctl why" in error
        cortex.run("stop", registered)
        assert cortex.properties(registered)["State"] == "stopped"

    def test_a_start_that_is_never_ready_ends_at_its_deadline(self, cortex: Cortex, registered: str) -> None:
        cortex.run("set", registered, "health.endpoint=/never", "health.startup_timeout_seconds=1", "RestartSec=60")
        assert "not ready after 1 s" in cortex.fails("start", registered)

    def test_a_port_held_by_a_process(self, cortex: Cortex, registered: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            cortex.run("set", registered, f"port={sock.getsockname()[1]}")
            error = cortex.fails("start", registered)
        assert f"process {os.getpid()}" in error and "port=auto" in error
        assert cortex.properties(registered)["InvocationID"] == ""

    def test_a_port_held_by_a_model(self, cortex: Cortex, registered: str) -> None:
        cortex.run("start", registered)
        port = cortex.properties(registered)["Settings"]["port"]
        cortex.run(
            "register", "second", "--path", str(lab.TINY_GGUF), "--backend", "llamacpp", "--exec", str(lab.LLAMA_SERVER),
            "--port", str(port), "--gpus", "none",
        )  # fmt: skip
        assert f"model {registered}" in cortex.fails("start", "second")
        cortex.run("unregister", "second")

    def test_a_strangers_answer_is_not_believed(self, cortex: Cortex, registered: str, tmp_path: Path) -> None:
        """A 200 from another process on the port is no readiness, while the unit's own server lives and says nothing."""
        silent = tmp_path / "silent-server"
        silent.write_text("#!/bin/sh\nexec sleep 1000\n")
        silent.chmod(0o755)
        cortex.run("set", registered, f"exec={silent}", "RestartSec=60")
        port = cortex.properties(registered)["Settings"]["port"]
        with HTTPServer(("127.0.0.1", port), _AlwaysWell) as stranger:
            Thread(target=stranger.serve_forever, daemon=True).start()
            done = subprocess.run(["systemctl", "--user", "start", f"cortex-{registered}"], check=False)
            stranger.shutdown()
        assert done.returncode != 0
        assert "outside this unit" in systemd(registered, "StatusText")["StatusText"]
        cortex.run("stop", registered)

    def test_settings_of_a_running_server_wait_for_its_restart(self, cortex: Cortex, registered: str) -> None:
        """The server that runs is watched where it is, whatever the settings say of the next one."""
        cortex.run(
            "set", registered, "health.interval_seconds=0.2", "health.timeout_seconds=0.2", "health.max_failures=1"
        )
        cortex.run("start", registered)
        before = cortex.properties(registered)
        cortex.run("set", registered, "port=auto")
        events = len(cortex.json("events", registered))
        # Each of these commands takes longer than from one probe to the next, and one failure would be enough.
        until(lambda: cortex.run("health", registered, check=False).returncode == 0, "a healthy answer")
        after = cortex.properties(registered)
        assert (after["InvocationID"], after["URL"]) == (before["InvocationID"], before["URL"])
        assert len(cortex.json("events", registered)) == events
        cortex.run("restart", registered)
        assert cortex.properties(registered)["URL"] != before["URL"]

    def test_set_tells_when_a_restart_is_needed(self, cortex: Cortex, registered: str) -> None:
        cortex.run("start", registered)
        assert "restart" in cortex.run("set", registered, "max_model_len=128").stderr
        assert cortex.properties(registered)["RestartNeeded"] is True
        cortex.run("restart", registered)
        assert cortex.properties(registered)["RestartNeeded"] is False
        assert "restart" not in cortex.run("set", registered, "health.max_failures=5").stderr

    def test_unregister_of_a_running_model_needs_force(self, cortex: Cortex, registered: str) -> None:
        cortex.run("start", registered)
        assert "--force" in cortex.fails("unregister", registered)
        assert cortex.properties(registered)["State"] == "ready"
        cortex.run("unregister", "--force", registered)
        assert cortex.run("status", registered, check=False).returncode == 4
        assert systemd(registered, "LoadState", "ActiveState") == {"LoadState": "not-found", "ActiveState": "inactive"}

    def test_several_at_once_by_glob(self, cortex: Cortex) -> None:
        for name in ("glob-a", "glob-b"):
            cortex.register_tiny(name)
        cortex.run("start", "glob-*")
        assert cortex.out("is-active", "glob-a", "glob-b").split() == ["ready", "ready"]
        cortex.run("stop", "glob-*")
        cortex.run("unregister", "glob-*")


class TestHealth:
    """Probes, and the restart after max_failures."""

    def test_health_of_a_ready_model(self, cortex: Cortex, registered: str) -> None:
        cortex.run("start", registered)
        assert "healthy" in cortex.out("health", registered)
        until(lambda: cortex.properties(registered)["Health"] == "healthy", "the first probe")

    def test_health_of_a_stopped_model(self, cortex: Cortex, registered: str) -> None:
        done = cortex.run("health", registered, check=False)
        assert (done.returncode, done.stdout) == (1, f"{registered} is stopped: it is not probed\n")

    def test_a_hung_server_is_restarted(self, cortex: Cortex, registered: str) -> None:
        cortex.run(
            "set", registered, "health.interval_seconds=0.3", "health.timeout_seconds=0.2", "health.max_failures=2",
            "RestartSec=0.2",
        )  # fmt: skip
        cortex.run("start", registered)
        before = cortex.properties(registered)
        os.kill(before["MainPID"], signal.SIGSTOP)
        until(
            lambda: (
                (m := cortex.properties(registered))["InvocationID"] != before["InvocationID"] and m["State"] == "ready"
            ),
            "the restart",
        )
        kinds = [e["Kind"] for e in cortex.json("events", registered)]
        assert kinds.index("degraded") < kinds.index("health-restart") < len(kinds) - 1 - kinds[::-1].index("ready")

    def test_no_health_check_leaves_a_hung_server_alone(self, cortex: Cortex, registered: str) -> None:
        cortex.run("set", registered, "health.enabled=no", "health.interval_seconds=0.2", "health.timeout_seconds=0.2")
        cortex.run("start", registered)
        model = cortex.properties(registered)
        assert model["Health"] == "off"
        os.kill(model["MainPID"], signal.SIGSTOP)
        assert cortex.run("health", registered, check=False).returncode == 1  # asked for, it still answers the truth
        assert cortex.properties(registered)["InvocationID"] == model["InvocationID"]
        os.kill(model["MainPID"], signal.SIGCONT)


class TestBoot:
    """enable and disable."""

    def test_enable_and_disable(self, cortex: Cortex, registered: str) -> None:
        assert cortex.run("is-enabled", registered, check=False).returncode == 1
        done = cortex.run("enable", registered)
        assert "linger" in done.stderr
        link = Path.home() / f".config/systemd/user/default.target.wants/cortex-{registered}.service"
        assert link.is_symlink()
        assert cortex.out("is-enabled", registered).strip() == "enabled"
        cortex.run("disable", registered)
        assert not link.is_symlink()

    def test_enable_now(self, cortex: Cortex, registered: str) -> None:
        cortex.run("enable", "--now", registered)
        model = cortex.properties(registered)
        assert (model["State"], model["UnitFileState"]) == ("ready", "enabled")

    def test_start_enable(self, cortex: Cortex, registered: str) -> None:
        cortex.run("start", "--enable", registered)
        model = cortex.properties(registered)
        assert (model["State"], model["UnitFileState"]) == ("ready", "enabled")


class TestStatusAndLogs:
    """What a person sees."""

    def test_exit_codes(self, cortex: Cortex, registered: str) -> None:
        codes = {
            verb: cortex.run(verb, registered, check=False).returncode for verb in ("status", "is-active", "is-failed")
        }
        assert codes == {"status": 3, "is-active": 3, "is-failed": 1}
        assert cortex.run("status", "no-such-model", check=False).returncode == 4
        cortex.run("start", registered)
        codes = {
            verb: cortex.run(verb, registered, check=False).returncode for verb in ("status", "is-active", "is-failed")
        }
        assert codes == {"status": 0, "is-active": 0, "is-failed": 1}

    def test_is_failed(self, cortex: Cortex, registered: str) -> None:
        cortex.run("set", registered, "extra_args=--no-such-option", "Restart=no")
        cortex.fails("start", registered)
        cortex.until_state(registered, "failed")
        assert cortex.out("is-failed", registered).strip() == "failed"
        cortex.run("reset-failed", registered)
        assert cortex.properties(registered)["State"] == "stopped"

    def test_status_shows_the_essentials(self, cortex: Cortex, registered: str) -> None:
        cortex.run("start", registered)
        text = cortex.out("status", registered)
        for word in (registered, "ready", "http://127.0.0.1:", f"cortex-{registered}.service", "2G"):
            assert word in text
        assert "\033" not in text  # plain where there is no terminal

    def test_the_table(self, cortex: Cortex, registered: str) -> None:
        text = cortex.out("status")
        assert registered in text and text == cortex.out("list")
        (model,) = [m for m in cortex.json("list") if m["Name"] == registered]
        assert model["State"] == "stopped"

    def test_logs_are_the_servers(self, cortex: Cortex, registered: str) -> None:
        cortex.run("start", registered)
        until(lambda: "listening" in cortex.out("logs", registered), "the server's lines")
        assert len(cortex.out("logs", registered, "-n", "2").splitlines()) == 2

    def test_logs_of_the_previous_run(self, cortex: Cortex, registered: str) -> None:
        cortex.run("start", registered)
        first = cortex.properties(registered)["MainPID"]
        cortex.run("restart", registered)
        text = until(lambda: cortex.out("logs", registered, "--previous"), "the log of the run before")
        assert f"[{first}]" in text and f"[{cortex.properties(registered)['MainPID']}]" not in text

    def test_a_failed_runs_log_is_kept(self, cortex: Cortex, registered: str) -> None:
        cortex.run("set", registered, "extra_args=--no-such-option", "Restart=no")
        cortex.fails("start", registered)
        folder = Path.home() / ".cortex/logs" / registered
        (saved,) = until(lambda: list(folder.glob("*.log")), "the saved log")
        assert "no-such-option" in saved.read_text()
        assert saved.stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700

    def test_events_tell_the_story_and_who(self, cortex: Cortex, registered: str) -> None:
        cortex.run("start", registered)
        cortex.run("stop", registered)
        until(lambda: cortex.json("events", registered)[-1]["Kind"] == "stopped", "the last event")
        events: list[dict[str, Any]] = cortex.json("events", registered)
        assert [e["Kind"] for e in events] == ["registered", "start", "run", "ready", "stop", "stopped"]
        assert all("[" in e["Actor"] for e in events if e["Kind"] in ("registered", "start", "stop"))
        assert events[3]["InvocationID"] == events[2]["InvocationID"] != ""


class TestDaemonDeath:
    """Models outlive cortexd, and cortexd finds them again."""

    def test_models_survive_a_kill(self, cortex: Cortex, registered: str, shared_daemon: Daemon) -> None:
        cortex.run("start", registered)
        before = cortex.properties(registered)
        shared_daemon.kill()
        assert systemd(registered, "ActiveState")["ActiveState"] == "active"
        shared_daemon.start()
        after = cortex.properties(registered)
        assert (after["State"], after["InvocationID"], after["MainPID"]) == (
            "ready",
            before["InvocationID"],
            before["MainPID"],
        )

    def test_a_run_that_began_meanwhile_is_adopted(
        self, cortex: Cortex, registered: str, shared_daemon: Daemon
    ) -> None:
        shared_daemon.kill()
        subprocess.run(["systemctl", "--user", "start", f"cortex-{registered}"], check=True)
        shared_daemon.start()
        assert cortex.properties(registered)["State"] == "ready"
        until(
            lambda: any("while cortexd was not there" in e["Message"] for e in cortex.json("events", registered)),
            "the event of the run that nobody watched",
        )

    def test_a_missing_unit_is_written_again(self, cortex: Cortex, registered: str, shared_daemon: Daemon) -> None:
        path = Path(cortex.properties(registered)["FragmentPath"])
        text = path.read_text()
        shared_daemon.kill(signal.SIGTERM)
        path.unlink()
        shared_daemon.start()
        assert path.read_text() == text

    def test_without_the_daemon_the_client_says_so(
        self, cortex: Cortex, registered: str, shared_daemon: Daemon
    ) -> None:
        shared_daemon.kill(signal.SIGTERM)
        error = cortex.fails("status", registered)
        assert "cortexd" in error and len(error.strip().splitlines()) == 1
        shared_daemon.start()
