"""Where backend files are found, and that none of them can harm or hold up the daemon."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cortexd.backends import BACKENDS, backend_of, library, list_backends
from cortexd.errors import InvalidConfig
from cortexd.scope import Scope, user_scope
from tests.backends_custom.forms import SMALL, custom, put, scope_of, spec_of


@pytest.fixture
def scope(tmp_path: Path) -> Scope:
    return scope_of(tmp_path, XDG_DATA_DIRS=f"{tmp_path}/local:relative:{tmp_path}/share")


def described(text: str) -> str:
    return SMALL.replace("a server", text)


def test_the_folders_are_those_of_the_xdg_specification(tmp_path: Path) -> None:
    home = {"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/1"}
    assert [str(folder) for folder in user_scope(home).backend_folders] == [
        "/home/u/.config/cortex/backends",
        "/usr/local/share/cortex/backends",
        "/usr/share/cortex/backends",
    ]
    other = user_scope({**home, "XDG_CONFIG_HOME": "/c", "XDG_DATA_DIRS": "/d:e:/f"}).backend_folders
    assert [str(folder) for folder in other] == [f"/{letter}/cortex/backends" for letter in "cdf"]


def test_the_first_found_wins(scope: Scope) -> None:
    assert custom("whisper", scope).source.parent == library.SHIPPED
    for at, text in ((2, "second"), (1, "first"), (0, "mine")):
        put(scope, "whisper", described(text), at)
        assert custom("whisper", scope).form.description == text
    put(scope, "whisper", "broken")
    with pytest.raises(InvalidConfig, match=f"{scope.backend_folders[0]}/whisper.toml: is no TOML"):
        backend_of("whisper", scope)  # it hides the others all the same: what a person wrote is what counts


def test_a_file_is_parsed_once_until_it_changes(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(scope, "b")
    first = custom("b", scope)
    parses = []
    real = library.parse
    monkeypatch.setattr(library, "parse", lambda text, file: parses.append(file) or real(text, file))
    assert all(custom("b", scope) is first for _ in range(1000))
    assert parses == []
    status = path.stat()
    path.write_text(described("A server"))  # as long as before
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert custom("b", scope).form.description == "A server"
    path.write_text("broken")
    for _ in range(3):
        with pytest.raises(InvalidConfig, match="is no TOML"):
            backend_of("b", scope)
    assert parses == [path, path]
    put(scope, "b")
    assert custom("b", scope).form == first.form


def test_what_is_no_backend_file_is_refused_at_once(scope: Scope, tmp_path: Path) -> None:
    folder = put(scope, "good").parent
    os.mkfifo(folder / "fifo.toml")
    (folder / "folder.toml").mkdir()
    (folder / "loop.toml").symlink_to("loop.toml")
    (folder / "dangling.toml").symlink_to("nothing")
    (folder / "device.toml").symlink_to("/dev/zero")
    (folder / "closed.toml").write_text(SMALL)
    (folder / "closed.toml").chmod(0)
    put(scope, "large", SMALL + "#" * library.MAX_BYTES)
    put(scope, "latin", b'description = "\xe4"')
    put(scope, "nul", SMALL.encode() + b"\0")
    put(scope, "empty", "")
    faults = {
        "fifo": "no regular file",
        "folder": "no regular file",
        "loop": "symbolic links",
        "dangling": "No such file",
        "device": "no regular file",
        "large": "more than 65536 bytes",
        "latin": "is no UTF-8",
        "nul": "is no TOML",
        "empty": "description: is missing",
    }
    if os.geteuid():
        faults["closed"] = "Permission denied"
    began = time.monotonic()
    for name, fault in faults.items():
        with pytest.raises(InvalidConfig) as caught:
            backend_of(name, scope)
        assert str(folder / f"{name}.toml") in str(caught.value) and fault in str(caught.value)
    listed = {each.name: each for each in list_backends(scope)}
    assert time.monotonic() - began < 5
    assert set(faults) < set(listed)
    assert all(fault in listed[name].problem and listed[name].backend is None for name, fault in faults.items())
    assert listed["good"].backend is custom("good", scope)


def test_a_link_to_a_file_is_a_file(scope: Scope, tmp_path: Path) -> None:
    path = put(scope, "b")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert custom("b", scope).source == path
    (tmp_path / "elsewhere").write_text(described("changed"))
    assert custom("b", scope).form.description == "changed"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "A", "x" * 65, "-x", "x\n", "é"])
def test_a_name_leads_nowhere_else(scope: Scope, tmp_path: Path, name: str) -> None:
    put(scope, "x")
    with pytest.raises(InvalidConfig) as caught:
        backend_of(name, scope)
    assert str(caught.value).startswith(f"backend={name!r}: use one of vllm, llamacpp, ollama, tgi, x, llamafile, ")
    assert "put the file" not in str(caught.value)


def test_an_unknown_backend_is_told_where_its_file_would_lie(scope: Scope) -> None:
    with pytest.raises(InvalidConfig) as caught:
        backend_of("mine", scope)
    message = str(caught.value)
    assert message.startswith("backend='mine': use one of vllm, llamacpp, ollama, tgi, llamafile, sglang, tei, whisper")
    assert message.endswith(f"put the file mine.toml in {' or '.join(map(str, scope.backend_folders))}")


@pytest.mark.parametrize("key", ["writes", "reads"])
@pytest.mark.parametrize("folder", ["/", "~/", "~/.cortex", "~/.cortex/{name}", "{home}/.config/systemd/user"])
def test_a_folder_that_no_model_may_see_is_listed_as_a_fault(scope: Scope, key: str, folder: str) -> None:
    path = put(scope, "b", f'{SMALL}{key} = ["/srv/{{name}}", "{folder}"]')
    put(scope, "c", f'{SMALL}{key} = ["/srv/{{name}}", "~/data", "{{cache}}/{{name}}"]')
    listed = {each.name: each for each in list_backends(scope)}
    assert listed["b"].backend is None and listed["b"].problem.startswith(f"{path}: {key}={folder!r}: would open ")
    assert listed["c"].backend is not None and listed["c"].problem == ""


def test_what_is_built_in_cannot_be_redefined(scope: Scope) -> None:
    path = put(scope, "vllm")
    odd = put(scope, "My Server")
    assert backend_of("vllm", scope) is BACKENDS["vllm"]
    listed = [(each.name, each.source, each.problem) for each in list_backends(scope)]
    assert listed[0] == ("vllm", "built-in", "")
    assert [name for name, _, _ in listed].count("vllm") == 1
    assert (
        "vllm.toml",
        str(path),
        f"{path}: vllm is built in and cannot be redefined; give the file another name",
    ) in listed
    assert [problem for name, _, problem in listed if name == "My Server"] == [
        f"{odd}: the name must be small letters, digits and . _ - only, 64 at most; rename the file"
    ]


def test_a_file_that_is_hidden_is_not_listed(scope: Scope) -> None:
    path = put(scope, "tei")
    assert [each.source for each in list_backends(scope) if each.name == "tei"] == [str(path)]


def test_a_python_with_the_package_is_found(scope: Scope, tmp_path: Path) -> None:
    put(scope, "b", SMALL.replace('executables = ["serve"]', 'python_package = "sglang"'))
    backend = custom("b", scope)
    plain, good, debian = (tmp_path / name / "bin" / "python3" for name in ("plain", "good", "debian"))
    for python in (plain, good, debian):
        python.parent.mkdir(parents=True)
        python.write_text("#!/bin/sh\n")
        python.chmod(0o755)
    (tmp_path / "good" / "lib" / "python3.12" / "site-packages" / "sglang").mkdir(parents=True)
    (tmp_path / "debian" / "lib" / "python3" / "dist-packages" / "sglang").mkdir(parents=True)
    assert backend.find(str(plain.parent)) is None
    assert "no python on your PATH has the package sglang" in backend.missing()
    assert backend.find(str(good.parent)) == str(good)
    assert backend.find(str(debian.parent)) == str(debian)
    for package, status in (("json", 0), ("sglang", 1)):
        put(scope, "b", SMALL.replace('executables = ["serve"]', f'python_package = "{package}"'))
        asked = custom("b", scope)
        command = asked.version_command(spec_of(asked, exec=sys.executable))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (status, "No module named sglang\n" if status else "")
