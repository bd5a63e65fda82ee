"""Settings, names, checks, registration, and the words for states: everything that is decided without systemd."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortexd import kinds, ports
from cortexd.backends import BACKENDS, backend_of
from cortexd.checks import check_spec, secrets_warnings, warnings_of
from cortexd.errors import ERROR_PREFIX, InvalidConfig, InvalidName, PortInUse
from cortexd.events import Ending, Priority
from cortexd.health.policy import HealthState
from cortexd.kinds import GIB, INFINITY, KIB, MIB, TIB, Kind, Value
from cortexd.model import SETTINGS, ModelSpec, build_spec, default_memory_high, parse_settings, settings_of
from cortexd.names import check_name, job_path, model_name, model_path, unit_name
from cortexd.registration import Caller, fill_in
from cortexd.runs import how_it_ended, transitions
from cortexd.scope import Scope, user_scope
from cortexd.states import NOT_READY, State, describe_end, judge, signal_name
from cortexd.systemd.protocol import UnitState
from tests.support.units import free_port

fast = settings(deadline=None, database=None, derandomize=True)


def spec_of(name: str = "m", backend: str = "vllm", **explicit: Value) -> ModelSpec:
    """A model with the table's and the backend's defaults."""
    given_ = {key.replace("__", "."): value for key, value in explicit.items()}
    gpus = given_.get("gpus", ("0",))
    defaults = BACKENDS[backend].defaults(len(gpus) if isinstance(gpus, tuple) else 0)
    return build_spec(name, {"path": "org/name", "backend": backend, **given_}, defaults)


# --------------------------------------------------------------------------------------------------------------- table


def test_every_setting_of_the_issue_is_in_the_table_with_its_default() -> None:
    values = settings_of(spec_of())
    expected: dict[str, object] = {
        "backend": "vllm", "port": 8000, "host": "127.0.0.1", "gpus": ("0",), "memory": 32 * GIB, "cpu": 4.0,
        "max_model_len": 4096, "tensor_parallel": 1, "quantization": "", "extra_args": "", "gpu_memory_utilization": 0.9,
        "env": (), "log_level": "info",
        "MemoryHigh": 28 * GIB, "CPUWeight": 100, "IOWeight": 100,
        "NoNewPrivileges": True, "ProtectSystem": "strict", "ProtectHome": "read-only", "PrivateTmp": True,
        "PrivateDevices": False, "RestrictRealtime": True, "RestrictSUIDSGID": True, "ProtectKernelTunables": True,
        "ProtectKernelModules": True, "ProtectControlGroups": True, "ReadWritePaths": (),
        "RestrictNamespaces": False, "RestrictAddressFamilies": False, "SystemCallFilter": False, "LockPersonality": False,
        "MemoryDenyWriteExecute": False, "ProtectKernelLogs": False, "ProtectClock": False, "ProtectHostname": False,
        "UMask": "0022", "security": "default", "sandbox_required": False,
        "health.enabled": True, "health.endpoint": "/health", "health.interval_seconds": 30, "health.timeout_seconds": 10,
        "health.max_failures": 3, "health.probe": "http", "health.busy_timeout_seconds": 600,
        "health.startup_delay_seconds": 60, "health.startup_timeout_seconds": 3600, "health.startup_stall_seconds": 120,
        "RestartSec": 10, "StartLimitIntervalSec": 300, "StartLimitBurst": 5, "max_restarts": 5,
        "stable_after_seconds": 600,
        # The backend's own.
        "Restart": "always", "TasksMax": 4096,
    }  # fmt: skip
    assert {**values, "path": "", "exec": ""} == {**expected, "path": "", "exec": ""}
    assert set(SETTINGS) == set(values)


def test_names_are_the_options_or_systemds() -> None:
    for name in SETTINGS:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*|[A-Z][A-Za-z]+|health\.[a-z]+(_[a-z]+)*", name)


def test_what_needs_no_restart() -> None:
    assert {name for name, row in SETTINGS.items() if row.live} == {
        "health.enabled", "health.interval_seconds", "health.timeout_seconds", "health.max_failures",
        "health.startup_delay_seconds", "health.probe", "health.busy_timeout_seconds",
        "max_restarts", "stable_after_seconds",
        "memory", "MemoryHigh", "cpu", "CPUWeight", "IOWeight", "TasksMax",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("memory", "high"),
    [(32 * GIB, 28 * GIB), (128 * GIB, 120 * GIB), (64 * GIB, 56 * GIB), (65 * GIB, 57 * GIB), (8 * GIB, 7 * GIB),
     (MIB, MIB - MIB // 8), (INFINITY, INFINITY)],
)  # fmt: skip
def test_memory_high(memory: int, high: int) -> None:
    assert default_memory_high(memory) == high
    assert spec_of(memory=memory).limits.memory_high == high
    assert spec_of(memory=memory, MemoryHigh=MIB).limits.memory_high == MIB


@pytest.mark.parametrize(("backend", "gpus", "tasks"), [("vllm", 0, 4096), ("vllm", 1, 4096), ("vllm", 4, 16384), ("llamacpp", 4, 512),
                                                        ("ollama", 2, 4096), ("tgi", 0, 4096), ("tgi", 2, 8192)])  # fmt: skip
def test_tasks_are_the_backends(backend: str, gpus: int, tasks: int) -> None:
    named = tuple(map(str, range(gpus)))
    assert spec_of(backend=backend, gpus=named).limits.tasks_max == tasks
    assert spec_of(backend=backend, gpus=named, TasksMax=99).limits.tasks_max == 99


def test_explicit_before_backend_before_table() -> None:
    assert spec_of(backend="llamacpp").restart.restart == "on-failure"
    assert spec_of(backend="llamacpp", Restart="no").restart.restart == "no"
    assert spec_of(backend="ollama", health__endpoint="/x").health.endpoint == "/x"


# --------------------------------------------------------------------------------------------------------------- kinds

WEIRD = st.one_of(
    st.text(max_size=30), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text(max_size=5), max_size=3),
    st.binary(max_size=5), st.from_regex(r"[0-9]{1,5}(\.[0-9]{1,3})?[KMGTkmgt]?(iB|B)?", fullmatch=True),
    st.sampled_from(["yes", "no", "on", "none", "infinity", INFINITY, "0,1", "GPU-0000", "strict", "always", "/a /b", "'", "nan", "inf", "1e5",
                     "-0", "0x10", "1_0", "٣", "99999999999999999999999", "\ufffe", "\u2028", "a\0b", "\n", " 8 ", "8000.0"]),
)  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_text_is_the_inverse_of_parse(name: str) -> None:
    kind = SETTINGS[name].kind

    @fast
    @given(WEIRD)
    def round_trip(raw: object) -> None:
        try:
            value = kind.parse(raw)
        except ValueError as e:
            assert str(e)
            return
        assert kind.parse(kind.text(value)) == value
        assert kind.parse(value) == value

    round_trip()


@pytest.mark.parametrize("name", [n for n, row in SETTINGS.items() if row.default is not None])
def test_every_default_is_a_value_of_its_kind(name: str) -> None:
    row = SETTINGS[name]
    assert row.default is not None
    assert row.kind.parse(row.kind.text(row.default)) == row.default


@fast
@given(st.floats(0.1, 86400 * 7))
def test_numbers_keep_every_digit(value: float) -> None:
    assert kinds.SECONDS.parse(kinds.SECONDS.text(value)) == value


@pytest.mark.parametrize(
    ("text", "size"),
    [("32G", 32 * GIB), ("32g", 32 * GIB), ("32GiB", 32 * GIB), ("32 GB", 32 * GIB), (" 512M ", 512 * MIB), ("1.5T", 3 * TIB // 2),
     ("2048K", 2 * MIB), ("1048576", MIB), (str(MIB), MIB), ("0.5G", GIB // 2), ("infinity", INFINITY), ("MAX", INFINITY),
     ("unlimited", INFINITY), ("8388607T", 8388607 * TIB), (INFINITY, INFINITY), (GIB, GIB), ("1048577", MIB + 1)],
)  # fmt: skip
def test_sizes(text: object, size: int) -> None:
    assert kinds.SIZE.parse(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "-1G",
        "1P",
        "32Gb/s",
        "1e9",
        "0",
        "1023K",
        "8388608T",
        "NaN",
        "1.G",
        ".5G",
        True,
        None,
        1.5,
        -1,
        [],
        "1 2",
    ],
)
def test_bad_sizes(text: object) -> None:
    with pytest.raises(ValueError, match=r"512M|1M"):
        kinds.SIZE.parse(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (32 * GIB, "32G"),
        (1536 * MIB, "1536M"),
        (MIB + 1, "1048577"),
        (2 * TIB, "2T"),
        (1025 * KIB, "1025K"),
        (INFINITY, "infinity"),
        (0, "0"),
    ],
)
def test_sizes_as_systemd_writes_them(size: int, text: str) -> None:
    assert kinds.size_text(size) == text


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        (kinds.BOOLEAN, "yes", True), (kinds.BOOLEAN, "On", True), (kinds.BOOLEAN, "0", False), (kinds.BOOLEAN, False, False),
        (kinds.PORT, "8080", 8080), (kinds.PORT, 1.0, 1), (kinds.PORT, "65535", 65535),
        (kinds.CORES, "2.5", 2.5), (kinds.CORES, 4, 4.0), (kinds.CORES, "0.01", 0.01),
        (kinds.GPUS, "0,1", ("0", "1")), (kinds.GPUS, " 0 , 1 ", ("0", "1")), (kinds.GPUS, "none", ()), (kinds.GPUS, [], ()),
        (kinds.GPUS, ["0"], ("0",)), (kinds.GPUS, 3, ("3",)),
        (kinds.GPUS, "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0", ("MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0",)),
        (kinds.PATHS, "/a '/b c'", ("/a", "/b c")), (kinds.PATHS, ["/a b", "/c"], ("/a b", "/c")),
        (SETTINGS["ProtectHome"].kind, True, "true"), (SETTINGS["ProtectHome"].kind, "no", "false"),
        (SETTINGS["ProtectHome"].kind, "READ-ONLY", "read-only"), (SETTINGS["ProtectSystem"].kind, "1", "true"),
        (SETTINGS["Restart"].kind, False, "no"), (SETTINGS["Restart"].kind, "off", "no"),
    ],
)  # fmt: skip
def test_values(kind: Kind, raw: object, value: Value) -> None:
    assert kind.parse(raw) == value


BAD: list[tuple[str, object, str]] = [
    ("port", "0", "1 to 65535"), ("port", "65536", "1 to 65535"), ("port", "http", "whole number"), ("port", "80.5", "whole number"),
    ("port", True, "whole number"), ("port", "1e999", "whole number"), ("port", "nan", "whole number"),
    ("memory", "12", "1M"), ("memory", "lots", "512M"), ("MemoryHigh", "-1", "512M"),
    ("cpu", "0", "0.01 to 10000 cores"), ("cpu", "inf", "0.01 to 10000 cores"), ("cpu", "10001", "cores"), ("cpu", [], "cores"),
    ("CPUWeight", "0", "1 to 10000"), ("IOWeight", "10001", "1 to 10000"), ("TasksMax", "0", "1 to 1000000"),
    ("max_model_len", "0", "whole number"), ("tensor_parallel", "-1", "1 to 1024"), ("gpu_memory_utilization", "1.01", "0.01 to 1"),
    ("gpus", "0,,1", "0,1"), ("gpus", "0;1", "0,1"), ("gpus", "1,1", "twice"), ("gpus", "٣", "0,1"), ("gpus", "0,none", "none"),
    ("NoNewPrivileges", "maybe", "yes or no"), ("PrivateTmp", 2, "yes or no"), ("ProtectSystem", "read-only", "strict"),
    ("ProtectHome", "strict", "read-only, tmpfs"), ("Restart", "yes", "on-failure"),
    ("ReadWritePaths", "a", "absolute"), ("ReadWritePaths", "'/a", "absolute"), ("ReadWritePaths", "/a/../b", r"'\.\.'"),
    ("ReadWritePaths", ["/a\n"], "control character"), ("ReadWritePaths", [1], "text"),
    ("extra_args", "--a 'b", "balance the quotes"), ("extra_args", "a\nb", "control character"), ("extra_args", "a\0b", "control character"),
    ("extra_args", "tail\\", "balance"), ("extra_args", 1, "text"), ("path", "a\tb", "control character"),
    ("path", "a\ufffeb", "character"), ("path", "x" * 5000, "4096"), ("exec", "\x85", "control character"), ("host", "a\u2028b", "control character"),
    ("health.interval_seconds", "0", "0.1 to 604800 seconds"), ("health.max_failures", "0", "1 to 1000"),
    ("log_level", "warning", "info, debug"), ("health.startup_timeout_seconds", "soon", "seconds"), ("RestartSec", "-1", "0 to 86400 seconds"), ("StartLimitBurst", "0", "1 to 1000"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "remedy"), BAD, ids=lambda x: repr(x)[:30])
def test_a_bad_value_is_named_with_its_field_and_the_remedy(name: str, value: object, remedy: str) -> None:
    with pytest.raises(InvalidConfig, match=remedy) as caught:
        parse_settings({"memory": "1G", name: value})
    message = str(caught.value)
    assert message.startswith(f"{name}=")
    assert repr(value)[:60] in message
    assert len(message) < 300


def test_unknown_settings() -> None:
    for name, hint in {"memoryhigh": "MemoryHigh", "max-model-len": "max_model_len", "prot": "port", "zz": "cortexctl show",
                       "": "cortexctl show", "x" * 500: "cortexctl show"}.items():  # fmt: skip
        with pytest.raises(InvalidConfig, match=f"unknown setting.*{hint}") as caught:
            parse_settings({name: "1"})
        assert len(str(caught.value)) < 200


def test_an_empty_value_is_the_default_again_and_auto_a_port() -> None:
    assert parse_settings({"memory": "", "port": "auto"}) == {"memory": None, "port": "auto"}
    with pytest.raises(InvalidConfig):
        parse_settings({"max_model_len": "auto"})


# --------------------------------------------------------------------------------------------------------------- names

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}", fullmatch=True).filter(
    lambda name: model_name(unit_name(name)) is not None
)


@fast
@given(st.sets(NAMES, min_size=2, max_size=2))
def test_no_two_models_share_a_unit_or_an_object(names: set[str]) -> None:
    for mapping in (unit_name, model_path):
        assert len({mapping(name) for name in names}) == 2
    for name in names:
        assert model_name(unit_name(name)) == name
        assert re.fullmatch(r"(/[A-Za-z0-9_]+)+", model_path(name))


def test_object_paths_are_escaped_as_systemd_does() -> None:
    assert model_path("llama-70b") == "/org/cortexlinux/Cortex1/model/llama_2d70b"
    assert model_path("7b_x") == "/org/cortexlinux/Cortex1/model/_37b_5fx"
    assert job_path(12) == "/org/cortexlinux/Cortex1/job/12"


@pytest.mark.parametrize("name", ["a", "0", "A0.b_c:d-e", "a" * 64, "model-v1.5", "a..b", "x.services"])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "-a", ".a", "_a", ":a", "a b", "a/b", "a@b", "a\\b", "ü", "a\n", "\n", "a\0", "a%", "a" * 65, "a.service", "a.socket", "a.d",
     "a.slice", "a.mount", "a-", "٣", "../x", "a" * 100_000],
)  # fmt: skip
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidName, match="name ") as caught:
        check_name(name)
    assert len(str(caught.value)) < 250 or len(name) > 64


@pytest.mark.parametrize("unit", ["cortexd.service", "cortex.slice", "cortex-.service", "cortex-a.socket", "a.service", "cortexd-mkdir@x.service",
                                  "cortex-a@b.service", "cortex-a.service.d"])  # fmt: skip
def test_units_that_are_no_models(unit: str) -> None:
    assert model_name(unit) is None


def test_errors_have_names_on_the_bus() -> None:
    assert InvalidName("x").dbus_name == ERROR_PREFIX + "InvalidName"


# -------------------------------------------------------------------------------------------------------------- checks


@pytest.fixture
def scope(tmp_path: Path) -> Scope:
    return user_scope({"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": "/run/user/1000"})


def check(spec: ModelSpec, scope: Scope) -> None:
    check_spec(spec, BACKENDS[spec.backend], scope)


@pytest.mark.parametrize(
    ("explicit", "message"),
    [
        ({"path": ""}, "path.*missing.*--path"),
        ({"path": "/run/user/1000/m.gguf"}, "path=.*lies in /run/user/1000, which no model may see; move it"),
        ({"path": "/nonexistent"}, "path='/nonexistent'.*does not exist"),
        ({"path": "two words"}, "path='two words'.*org/name"),
        ({"path": "a/b/c"}, "path='a/b/c'.*org/name"),
        ({"host": "example.com"}, r"host='example.com'.*127\.0\.0\.1"),
        ({"host": ""}, "host=''"),
        ({"host": "1.2.3"}, r"host='1\.2\.3'"),
        ({"host": "/tmp/x.sock"}, "host='/tmp/x.sock'"),
        ({"exec": "/opt/it's/vllm"}, "exec=.*quote or a backslash.*link"),
        ({"exec": "/opt/a\\b/vllm"}, "exec=.*quote or a backslash.*link"),
        ({"health__endpoint": "health"}, "health.endpoint='health'.*must begin with /"),
        ({"health__endpoint": "/a b"}, "health.endpoint='/a b': has the character ' '.*as %20"),
        ({"health__endpoint": "/x#z"}, "health.endpoint='/x#z': has the character '#'.*as %23"),
        ({"health__endpoint": "/ü"}, "health.endpoint='/ü'.*'ü'.*%C3%BC"),
        ({"memory": GIB, "MemoryHigh": 2 * GIB}, "MemoryHigh=2G.*memory=1G.*lower"),
        ({"health__timeout_seconds": 31.0}, "health.timeout_seconds=31.*health.interval_seconds=30"),
        ({"ReadWritePaths": ("/",)}, "ReadWritePaths='/'.*leave it out"),
        ({"tensor_parallel": 2}, "tensor_parallel=2.*gpus names 1.*--gpus"),
        ({"quantization": "q4"}, "quantization='q4'.*awq"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together(explicit: dict[str, Any], message: str, scope: Scope) -> None:
    with pytest.raises(InvalidConfig, match=message):
        check(spec_of(**explicit), scope)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost", "192.168.1.5", "fe80::1%eth0"])
def test_hosts(host: str, scope: Scope) -> None:
    check(spec_of(host=host), scope)


@pytest.mark.parametrize("path", ["org/name", "gpt2", "meta-llama/Llama-2-70b-hf", "a/b:Q4_K_M", "0/1"])
def test_references(path: str, scope: Scope) -> None:
    check(spec_of(path=path), scope)


def test_our_own_folder_is_nobodys(scope: Scope) -> None:
    for folder in (scope.data, scope.data / "logs", scope.home, scope.home.parent):
        with pytest.raises(InvalidConfig, match=r"ReadWritePaths=.*\.cortex"):
            check(spec_of(ReadWritePaths=(str(folder),)), scope)
    check(spec_of(ReadWritePaths=(str(scope.home / ".cortex2"),)), scope)
    with pytest.raises(InvalidConfig, match=r"path=.*\.cortex.*elsewhere"):
        check(spec_of(path=str(scope.data / "models.db")), scope)


# ------------------------------------------------------------------------------------------------------------ warnings


def test_of_folders_whose_files_run_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folders = tuple(f"{tmp_path}/{name}" for name in ("models", ".ssh", ".local/bin/mine"))
    said = [*warnings_of(spec_of(ReadWritePaths=folders), BACKENDS["vllm"], [], ())]
    assert [w.partition(":")[0] for w in said] == [f"ReadWritePaths={folder!r}" for folder in folders[1:]]


@pytest.mark.parametrize(
    ("host", "other", "warned"),
    [("127.0.0.1", "127.0.0.1", True), ("127.0.0.1", "localhost", True), ("127.0.0.1", "127.0.0.2", False), ("0.0.0.0", "10.0.0.1", True),
     ("::", "127.0.0.1", True), ("::1", "0:0:0:0:0:0:0:1", True), ("::1", "127.0.0.1", False), ("10.0.0.1", "::", True)],
)  # fmt: skip
def test_a_port_that_two_have(host: str, other: str, warned: bool) -> None:
    assert ports.overlap(host, other) is ports.overlap(other, host) is warned
    found = [
        w
        for w in warnings_of(spec_of(host=host), BACKENDS["vllm"], [spec_of("second", host=other)], ())
        if w.startswith("port=8000")
    ]
    assert len(found) == warned and all("second" in w for w in found)


def test_no_warning_of_oneself_or_of_another_port() -> None:
    assert list(warnings_of(spec_of(), BACKENDS["vllm"], [spec_of(), spec_of("b", port=8001)], ())) == []


def test_only_what_was_asked_for_is_held_against_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortexd.checks.machine_memory", lambda: 4 * GIB)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    spec = spec_of(memory=32 * GIB, cpu=4.0)
    assert list(warnings_of(spec, BACKENDS["vllm"], [], ())) == []
    memory, cpu = warnings_of(spec, BACKENDS["vllm"], [], ("memory", "cpu"))
    assert "memory=32G" in memory and "4.0G" in memory
    assert "cpu=4:" in cpu and "2 cores" in cpu
    assert list(warnings_of(spec_of(memory=INFINITY), BACKENDS["vllm"], [], ("memory",))) == []


@pytest.mark.parametrize(("host", "open_"), [("0.0.0.0", True), ("::", True), ("192.168.0.2", True), ("127.0.0.9", False), ("::1", False),
                                             ("localhost", False)])  # fmt: skip
def test_a_server_that_anybody_reaches(host: str, open_: bool) -> None:
    assert any("anybody" in warning for warning in secrets_warnings(spec_of(host=host), "API_KEY", ())) is open_


# -------------------------------------------------------------------------------------------------------- registration


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    return folder


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def fill(
    given_: Mapping[str, Value | None], folder: Path, *, old: Mapping[str, Value] = {}, cwd: Path | str = ""
) -> dict[str, Value]:
    return fill_in(given_, old, Caller("me", str(folder), str(cwd)), user_scope(os.environ), [])


def test_vllm_before_python(bin_folder: Path) -> None:
    (bin_folder.parent / "lib/python3.12/site-packages/vllm/entrypoints").mkdir(parents=True)
    program(bin_folder / "python3")
    assert fill({"path": "a/b"}, bin_folder)["exec"] == str(bin_folder / "python3")
    program(bin_folder / "python")
    assert fill({"path": "a/b"}, bin_folder)["exec"] == str(bin_folder / "python")
    program(bin_folder / "vllm")
    assert fill({"path": "a/b"}, bin_folder)["exec"] == str(bin_folder / "python"), "a build of another name"
    (bin_folder.parent / "lib/python3.12/site-packages/vllm-0.33.0.dist-info").mkdir()
    assert fill({"path": "a/b"}, bin_folder)["exec"] == str(bin_folder / "vllm")


def test_a_python_without_vllm_is_none(bin_folder: Path) -> None:
    program(bin_folder / "python3")
    with pytest.raises(InvalidConfig, match=r"exec: neither vllm nor a python that has it.*PATH.*--exec"):
        fill({"path": "a/b"}, bin_folder)


@pytest.mark.parametrize(
    ("backend", "name"), [("llamacpp", "llama-server"), ("ollama", "ollama"), ("tgi", "text-generation-launcher")]
)
def test_the_callers_path_is_searched_not_ours(
    backend: str, name: str, bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bin_folder / name)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert fill({"path": "a/b", "backend": backend}, bin_folder)["exec"] == str(bin_folder / name)
    with pytest.raises(InvalidConfig, match=f"no {name} on your PATH; install {backend}, or give --exec"):
        fill({"path": "a/b", "backend": backend}, bin_folder / "other")


def test_a_link_is_kept_as_it_is(bin_folder: Path) -> None:
    """A virtual environment is one only by the name of its python."""
    program(bin_folder / "real")
    (bin_folder / "llama-server").symlink_to("real")
    assert fill({"path": "a/b", "backend": "llamacpp"}, bin_folder)["exec"] == str(bin_folder / "llama-server")


def test_exec_by_name_path_and_relative_path(bin_folder: Path, tmp_path: Path) -> None:
    mine = program(bin_folder / "mine")
    for given_ in ("mine", str(mine), "./mine", "../bin/mine"):
        assert fill({"path": "a/b", "exec": given_}, bin_folder, cwd=bin_folder)["exec"] == str(mine)
    for given_, why in {
        "absent": "not on your PATH",
        "./absent": "no executable file",
        str(tmp_path): "no executable file",
    }.items():
        with pytest.raises(InvalidConfig, match=f"exec='{re.escape(given_)}'.*{why}"):
            fill({"path": "a/b", "exec": given_}, bin_folder, cwd=bin_folder)
    with pytest.raises(InvalidConfig, match="absolute path"):
        fill({"path": "a/b", "exec": "./mine"}, bin_folder)


def test_exec_is_kept_until_the_backend_changes(bin_folder: Path) -> None:
    for name in ("vllm", "ollama", "mine"):
        program(bin_folder / name)
    old: dict[str, Value] = {"path": "a/b", "exec": str(bin_folder / "mine")}
    assert fill({"memory": GIB}, bin_folder, old=old)["exec"] == str(bin_folder / "mine")
    assert fill({"backend": "vllm"}, bin_folder, old=old)["exec"] == str(bin_folder / "mine")  # it was vllm before
    assert fill({"backend": "ollama"}, bin_folder, old=old)["exec"] == str(bin_folder / "ollama")
    assert fill({"exec": None}, bin_folder, old=old)["exec"] == str(bin_folder / "vllm")


def test_none_takes_a_setting_back(bin_folder: Path) -> None:
    program(bin_folder / "vllm")
    filled = fill({"memory": None, "cpu": 2.0}, bin_folder, old={"path": "a/b", "memory": GIB, "port": 1})
    assert filled == {"path": "a/b", "port": 1, "cpu": 2.0, "exec": str(bin_folder / "vllm")}


def test_paths_of_the_caller(bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bin_folder / "vllm")
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("HOME", "/home/somebody")
    expected = {
        "models": f"{tmp_path}/models", "./absent": f"{tmp_path}/absent", "../x": f"{tmp_path.parent}/x", "absent/name": "absent/name",
        "/a//b/../c/": "/a/c", "~/m.gguf": "/home/somebody/m.gguf", "~": "/home/somebody", "~other/m": "~other/m",
    }  # fmt: skip
    for path, filled in expected.items():
        assert fill({"path": path}, bin_folder, cwd=tmp_path)["path"] == filled
    assert fill({"path": "models"}, bin_folder)["path"] == "models"  # where the caller does not say where it is


def test_odd_folders_of_the_caller_are_refused_now_not_at_the_next_start(bin_folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "new\nline"
    (odd / "models").mkdir(parents=True)
    program(bin_folder / "vllm")
    with pytest.raises(InvalidConfig, match=r"path=.*control character"):
        fill({"path": "models"}, bin_folder, cwd=odd)
    program(odd / "vllm")
    with pytest.raises(InvalidConfig, match=r"exec=.*control character"):
        fill({"path": "a/b"}, odd)


# --------------------------------------------------------------------------------------------------------------- ports


@pytest.fixture
def occupied() -> Iterator[int]:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        yield port


def test_auto_is_outside_the_ephemeral_range_and_avoids_others(bin_folder: Path) -> None:
    program(bin_folder / "vllm")
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    others: list[ModelSpec] = []
    for number in range(5):
        filled = fill_in(
            {"path": "a/b", "port": "auto"}, {}, Caller("", str(bin_folder)), user_scope(os.environ), others
        )
        others.append(spec_of(f"m{number}", port=filled["port"]))
        assert isinstance(filled["port"], int) and 8000 <= filled["port"] < low
    assert len({spec.port for spec in others}) == 5


def test_auto_skips_what_is_in_use(occupied: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_FIRST", occupied)
    assert ports.free_port("127.0.0.1", ()) > occupied
    assert ports.free_port("0.0.0.0", ()) > occupied  # a server on all addresses could not have it either
    assert ports.free_port("127.0.0.1", {occupied + 1}) > occupied + 1


def test_auto_with_a_wildcard_looks_at_every_address(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bin_folder / "vllm")
    port = free_port()
    monkeypatch.setattr(ports, "_FIRST", port)
    with socket.create_server(("127.0.0.3", port)):
        found = {
            host: fill({"path": "a/b", "port": "auto", "host": host}, bin_folder)["port"]
            for host in ("127.0.0.1", "0.0.0.0")
        }
    assert found["127.0.0.1"] == port != found["0.0.0.0"]


def test_auto_when_all_are_taken() -> None:
    with pytest.raises(PortInUse, match=r"port=auto: no port from 8000 to \d+ is free.*--port"):
        ports.free_port("127.0.0.1", range(65536))


def test_auto_needs_a_host_to_look_at(bin_folder: Path) -> None:
    program(bin_folder / "vllm")
    assert fill({"path": "a/b", "port": "auto", "host": "::1"}, bin_folder)["port"] != "auto"
    assert fill({"path": "a/b", "port": "auto", "host": "localhost"}, bin_folder)["port"] != "auto"
    with pytest.raises(InvalidConfig, match="host='nowhere'"):
        fill({"path": "a/b", "port": "auto", "host": "nowhere"}, bin_folder)


def test_the_holder_of_a_port(occupied: int) -> None:
    holder = ports.holder("127.0.0.1", occupied)
    comm = Path("/proc/self/comm").read_text().strip()
    assert holder == f"process {os.getpid()} ({comm})"
    assert ports.holder("::1", occupied) is None
    assert ports.holder("127.0.0.1", free_port()) is None


def test_this_machines_memory() -> None:
    (total,) = re.findall(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert abs(ports.machine_memory() - int(total) * 1024) < MIB


# -------------------------------------------------------------------------------------------------------------- states

KILLED, EXITED, DUMPED = 2, 1, 3


def unit(**state: Any) -> UnitState:
    return UnitState(unit="cortex-m.service", load_state="loaded", **state)


def test_every_state_of_the_issue_exists() -> None:
    assert [*State] == [
        "stopped",
        "starting",
        "ready",
        "busy",
        "degraded",
        "unhealthy",
        "restarting",
        "stopping",
        "failed",
    ]


@pytest.mark.parametrize(
    ("state", "told", "reason"),
    [
        ({}, "stopped", ""),
        ({"active_state": "inactive", "result": "success", "exec_main_code": KILLED, "exec_main_status": 15}, "stopped", ""),
        ({"active_state": "activating", "sub_state": "start-post", "status_text": "Waiting"}, "starting", "Waiting"),
        ({"active_state": "activating", "sub_state": "start"}, "starting", ""),
        ({"active_state": "active", "sub_state": "running"}, "ready", ""),
        ({"active_state": "deactivating", "sub_state": "stop-sigterm"}, "stopping", ""),
        ({"active_state": "failed", "result": "exit-code", "exec_main_code": EXITED, "exec_main_status": 1}, "failed", "status 1"),
        ({"active_state": "failed", "result": "signal", "exec_main_code": KILLED, "exec_main_status": 9}, "failed", "SIGKILL"),
        ({"active_state": "activating", "sub_state": "auto-restart", "result": "signal", "exec_main_code": KILLED, "exec_main_status": 9},
         "restarting", "SIGKILL; systemd starts it again 10 s"),
        ({"active_state": "activating", "sub_state": "auto-restart-queued"}, "restarting", "10 s"),
        ({"active_state": "activating", "sub_state": "failed-before-auto-restart"}, "restarting", "10 s"),
    ],
)  # fmt: skip
def test_judge(state: dict[str, Any], told: str, reason: str) -> None:
    judgement = judge(unit(**state), HealthState(), spec_of())
    assert judgement.state == told
    assert reason in judgement.reason and bool(reason) == bool(judgement.reason)


@pytest.mark.parametrize(
    ("health", "told", "reason"),
    [
        (HealthState(run="a", probed=True), "ready", ""),
        (HealthState(run="a", failures=1, reason="timed out"), "degraded", "timed out (1 of 3 failed probes in a row)"),
        (HealthState(run="a", failures=3, reason="timed out"), "unhealthy", "timed out"),
        (HealthState(run="b", failures=3, reason="of another run"), "ready", ""),
        (HealthState(run="a", failures=1, busy=True, reason="timed out, but works"), "busy", "timed out, but works"),
        (HealthState(run="b", busy=True, reason="of another run"), "ready", ""),
    ],
)
def test_judge_with_probes(health: HealthState, told: str, reason: str) -> None:
    judgement = judge(unit(active_state="active", sub_state="running", invocation_id="a"), health, spec_of())
    assert (judgement.state, judgement.reason) == (told, reason)


def test_a_condemned_run_restarts_and_does_not_stop() -> None:
    health = HealthState(run="a", failures=3, reason="dead")
    ending = unit(active_state="deactivating", sub_state="stop-sigkill", invocation_id="a")
    told = {by: judge(ending, health, spec_of(), ending=by).state for by in ("health", "stop", "kill", "")}
    assert told == {"health": "restarting", "stop": "stopping", "kill": "stopping", "": "stopping"}
    waiting = unit(active_state="activating", sub_state="auto-restart", invocation_id="a", result="signal", exec_main_code=KILLED,
                   exec_main_status=9)  # fmt: skip
    assert judge(waiting, health, spec_of(), ending="health").reason.startswith("dead; systemd starts it again")
    # Once it is known why, that is said: a probe that was under way may have met the end of the run.
    assert judge(waiting, health, spec_of(), ending="health", cause="killed").reason.startswith(
        "killed; systemd starts"
    )
    assert "SIGKILL" in judge(waiting, health, spec_of()).reason


def test_a_queued_start_is_no_stop() -> None:
    for state in ("inactive", "failed"):
        assert judge(unit(active_state=state, job=7), HealthState(), spec_of()).state == "starting"
        assert judge(unit(active_state=state, job=7, n_restarts=1), HealthState(), spec_of()).state == "restarting"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, ""),
        ({"exec_main_code": EXITED, "exec_main_status": 0}, ""),
        ({"result": "oom-kill", "exec_main_code": KILLED, "exec_main_status": 9}, "out of memory"),
        ({"result": "timeout"}, "within its time"),
        ({"result": "timeout", "status_text": NOT_READY + "not ready after 9 s"}, "not ready after 9 s"),
        ({"result": "start-limit-hit"}, "too often"),
        ({"result": "protocol"}, "main process"),
        ({"result": "resources"}, "could not prepare"),
        ({"result": "exit-code", "exec_main_code": EXITED, "exec_main_status": 1}, "exited with status 1"),
        ({"result": "exit-code", "exec_main_code": EXITED, "exec_main_status": 203}, "status 203 (its executable cannot be run)"),
        ({"result": "exit-code", "exec_main_code": EXITED, "exec_main_status": 226}, "its sandbox cannot be made"),
        ({"result": "exit-code", "exec_main_code": EXITED, "exec_main_status": 217}, "user namespaces"),
        ({"result": "exit-code", "exec_main_code": EXITED, "exec_main_status": 218}, "PrivateUsers"),
        ({"result": "exit-code", "exec_main_code": EXITED, "status_text": NOT_READY + "a stranger"}, "a stranger"),
        ({"result": "exit-code", "exec_main_code": KILLED, "exec_main_status": 15, "status_text": NOT_READY + "a stranger"}, "a stranger"),
        ({"result": "signal", "exec_main_code": KILLED, "exec_main_status": 9}, "killed by SIGKILL"),
        ({"result": "core-dump", "exec_main_code": DUMPED, "exec_main_status": 11}, "killed by SIGSEGV and dumped core"),
        ({"result": "signal", "exec_main_code": KILLED, "exec_main_status": 99}, "signal 99"),
        ({"result": "something-new"}, "something-new"),
    ],
)  # fmt: skip
def test_describe_end(state: dict[str, Any], words: str) -> None:
    text = describe_end(unit(active_state="failed", **state))
    assert words in text and bool(words) == bool(text)


def test_signal_names() -> None:
    assert (signal_name(9), signal_name(15), signal_name(999)) == ("SIGKILL", "SIGTERM", "signal 999")


# ---------------------------------------------------------------------------------------------------------------- runs

IDLE = unit()
LOADING = unit(active_state="activating", sub_state="start-post", invocation_id="a", main_pid=7)
UP = unit(
    active_state="active",
    sub_state="running",
    invocation_id="a",
    main_pid=7,
    exec_main_start=1_000_000,
    state_change=3_500_000,
)
CRASHED = unit(active_state="failed", result="signal", invocation_id="a", exec_main_code=KILLED, exec_main_status=9)
AGAIN = unit(active_state="activating", sub_state="auto-restart", result="signal", invocation_id="a", exec_main_code=KILLED,
             exec_main_status=9)  # fmt: skip
QUEUED = unit(active_state="activating", sub_state="auto-restart-queued", invocation_id="b", main_pid=8, n_restarts=1)
ENDED = unit(invocation_id="a", exec_main_code=EXITED)
TERMINATED = unit(invocation_id="a", exec_main_code=KILLED, exec_main_status=15)


@pytest.mark.parametrize(
    ("old", "new", "by", "events"),
    [
        (IDLE, IDLE, "", []),
        (UP, UP, "", []),
        (IDLE, LOADING, "", [("run", "run begins (process 7)")]),
        (LOADING, UP, "", [("ready", "ready after 2.5 s")]),
        (IDLE, UP, "", [("run", "run begins"), ("ready", "ready after 2.5 s")]),
        (UP, dataclasses.replace(UP, invocation_id="b"), "",
         [("stopped", "started anew by systemd"), ("run", "run begins"), ("ready", "ready")]),
        (UP, dataclasses.replace(UP, invocation_id="b"), "stop", [("run", "run begins"), ("ready", "ready")]),
        (AGAIN, dataclasses.replace(ENDED, exec_main_code=2, exec_main_status=9), "",
         [("stopped", "stopped while it waited for its next start")]),
        (UP, AGAIN, "", [("ended", "killed by SIGKILL from outside; systemd starts it again")]),
        (UP, AGAIN, "health", [("ended", "SIGKILL after failed health probes; systemd starts it again")]),
        (UP, AGAIN, "kill", [("ended", "cortexctl kill")]),
        (UP, AGAIN, "stop", []),
        (UP, dataclasses.replace(AGAIN, exec_main_status=15), "health", [("ended", "SIGTERM from outside; systemd starts it again")]),
        (AGAIN, AGAIN, "", []),
        (UP, dataclasses.replace(AGAIN, result="success", exec_main_code=EXITED, exec_main_status=0), "",
         [("ended", "the server ended by itself; systemd starts it again")]),
        (UP, CRASHED, "", [("failed", "killed by SIGKILL from outside")]),
        (LOADING, dataclasses.replace(CRASHED, result="exit-code", exec_main_code=EXITED, exec_main_status=1), "",
         [("failed", "exited with status 1")]),
        (UP, CRASHED, "stop", []),
        (CRASHED, CRASHED, "", []),
        (CRASHED, dataclasses.replace(CRASHED, invocation_id="b"), "", [("run", "run begins"), ("failed", "SIGKILL")]),
        (UP, dataclasses.replace(ENDED, restart="on-failure"), "",
         [("exited", "the server ended by itself with status 0; not restarted (Restart=on-failure)")]),
        (UP, ENDED, "kill", [("exited", "the server ended after SIGKILL (cortexctl kill) with status 0; not restarted")]),
        (UP, dataclasses.replace(ENDED, exec_main_status=143), "", [("exited", "by itself with status 143; not restarted")]),
        (LOADING, unit(invocation_id="a"), "", [("ended", "stopped before its server ran")]),
        (UP, ENDED, "stop", [("stopped", "stopped")]),
        (UP, dataclasses.replace(TERMINATED, restart="on-failure"), "",
         [("ended", "SIGTERM from outside; not restarted (Restart=on-failure)")]),
        (UP, TERMINATED, "stop", [("stopped", "stopped")]),
        (AGAIN, TERMINATED, "gave-up", [("stays-stopped", "")]),
        (UP, TERMINATED, "gave-up", [("stopped", "stopped by cortexd"), ("stays-stopped", "")]),
        (UP, AGAIN, "gave-up", [("ended", "killed by SIGKILL; it is being stopped")]),
        (AGAIN, dataclasses.replace(AGAIN, invocation_id="b"), "", [("run", "run begins"), ("ended", "systemd starts it again")]),
        (AGAIN, QUEUED, "", [("run", "run begins (process 8)")]),
        (QUEUED, dataclasses.replace(AGAIN, invocation_id="b"), "", [("ended", "systemd starts it again")]),
        (dataclasses.replace(UP, active_state="deactivating", job=9), TERMINATED, "systemd", [("stopped", "by systemd: with systemctl, or")]),
        (dataclasses.replace(UP, active_state="deactivating", job=9), ENDED, "systemd", [("stopped", "by systemd: with systemctl, or")]),
        (dataclasses.replace(UP, active_state="deactivating"), TERMINATED, "", [("ended", "SIGTERM from outside")]),
        (CRASHED, IDLE, "", []),
    ],
)  # fmt: skip
def test_transitions(old: UnitState, new: UnitState, by: str, events: list[tuple[str, str]]) -> None:
    """`by`: how cortexd ends the run "a", with SIGKILL."""
    found = list(transitions("m", old, new, Ending("a", by, 9) if by else Ending()))
    assert [event.kind for event in found] == [kind for kind, _ in events]
    for event, (_, words) in zip(found, events, strict=True):
        assert words in event.message
        run = old.invocation_id if event.message.startswith("started anew") else new.invocation_id
        assert (event.model, event.invocation_id) == ("m", run)


def test_an_ending_counts_for_its_run_alone() -> None:
    (event,) = transitions("m", UP, CRASHED, Ending("of another run", "stop", 9))
    assert (event.kind, event.message) == ("failed", "the server was killed by SIGKILL from outside")


def test_how_much_an_event_matters() -> None:
    def priority(old: UnitState, new: UnitState) -> Priority:
        return list(transitions("m", old, new, Ending()))[-1].priority

    assert priority(UP, CRASHED) is Priority.ERROR
    assert priority(UP, AGAIN) is priority(UP, TERMINATED) is priority(UP, ENDED) is Priority.WARNING
    assert priority(LOADING, UP) is Priority.INFO


def test_the_last_run_that_its_budget_allows_is_followed_by_none() -> None:
    (event,) = transitions("m", UP, AGAIN, Ending(), is_last=True)
    assert event.message.endswith("by SIGKILL from outside; it was the last run that max_restarts allows")


def test_how_a_run_ended_that_was_found_dead() -> None:
    killed = Ending("a", "health", 9, "3 health probes failed in a row, the last: no answer")
    assert how_it_ended(AGAIN, killed) == "cortexd killed it: 3 health probes failed in a row, the last: no answer"
    by_another = dataclasses.replace(AGAIN, exec_main_status=15)
    assert how_it_ended(by_another, killed) == "the server was killed by SIGTERM"
    assert how_it_ended(dataclasses.replace(AGAIN, invocation_id="b"), killed) == "the server was killed by SIGKILL"


# --------------------------------------------------------------------------------------------------- nothing slips in


@fast
@given(st.dictionaries(st.sampled_from([*SETTINGS, "nonsense"]), WEIRD, max_size=4))
def test_any_input_is_either_a_model_or_a_named_error(raw: dict[str, object]) -> None:
    try:
        parsed = parse_settings(raw)
        explicit = {name: value for name, value in parsed.items() if value is not None and value != "auto"}
        scope = user_scope({"HOME": "/nonexistent", "XDG_RUNTIME_DIR": "/run/user/1"})
        backend = backend_of(str(explicit.get("backend", "vllm")), scope)
        spec = build_spec("m", {"path": "org/name", **explicit}, backend.defaults(1))
        check_spec(spec, backend, scope)
    except InvalidConfig as e:
        assert str(e)
        return
    # Whatever was accepted can be typed again.
    for name, value in settings_of(spec).items():
        assert SETTINGS[name].kind.parse(SETTINGS[name].kind.text(value)) == value
    assert not set(spec.path) & set(string.whitespace.replace(" ", ""))
