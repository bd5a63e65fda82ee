"""Whether a model's settings fit together, and what about them deserves a warning."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from cortexd.backends import Backend
from cortexd.backends.base import is_reference, opened
from cortexd.errors import InvalidConfig
from cortexd.kinds import INFINITY, looks_secret, redacted, size_text
from cortexd.model import ModelSpec
from cortexd.ports import machine_memory, overlap
from cortexd.scope import FOLDER_VARIABLES, Scope
from cortexd.units.render import sockets_folder

_FIRST_UNPRIVILEGED = 1024
_MAX_FOLDERS = 256
_MAX_SOCKET_PATH = 107
"""Bytes (unix(7))."""
_ASKED = '[!-"$-~]'
"""A character of what is asked of a server: printable, and not the # after which a URL says what concerns the client alone."""
_RUN_LATER = (".ssh", ".local/bin", "bin", ".config/autostart", ".local/lib")
UNPROTECTED = "its server has no sandbox, and can do whatever you can"
OPEN_TO_ALL = "anybody who reaches this machine can use the model, and it asks for no key"
"""What the client shows louder than other warnings."""


def check_spec(spec: ModelSpec, backend: Backend, scope: Scope) -> None:
    """Refuse a model that cannot be run: InvalidConfig naming the setting, the value and the remedy."""
    if not spec.path:
        raise InvalidConfig("path: is missing; give --path FILE, FOLDER or ORG/NAME")
    backend.check_reference(spec.path)
    if not is_reference(spec.path):
        path = Path(spec.path)
        for hidden in (scope.data, scope.unit_folder, *([scope.runtime] if scope.runtime else [])):
            if path.is_relative_to(hidden):
                raise InvalidConfig(f"path={spec.path!r}: lies in {hidden}, which no model may see; move it elsewhere")
        if not _exists(path):
            raise InvalidConfig(
                f"path={spec.path!r}: does not exist; give a file or folder, or a reference such as org/name"
            )
    if re.search(r"[\"'\\]", spec.exec):
        raise InvalidConfig(
            f"exec={spec.exec!r}: systemd runs no program whose path has a quote or a backslash; make a link to it elsewhere"
        )
    if spec.socket:
        _check_socket(spec, backend, scope)
    else:
        check_host(spec.host)
    if spec.health.endpoint and not re.fullmatch(rf"/{_ASKED}*", spec.health.endpoint):
        fault = "must begin with /"
        if spec.health.endpoint.startswith("/"):
            odd = re.sub(_ASKED, "", spec.health.endpoint)[0]
            fault = f"has the character {odd!r}, which no server is asked for; write it as {quote(odd)}"
        raise InvalidConfig(f"health.endpoint={spec.health.endpoint!r}: {fault}")
    if spec.limits.memory_high > spec.limits.memory:
        raise InvalidConfig(
            f"MemoryHigh={size_text(spec.limits.memory_high)}: is above memory={size_text(spec.limits.memory)}; lower it"
        )
    if spec.health.timeout > spec.health.interval:
        raise InvalidConfig(
            f"health.timeout_seconds={spec.health.timeout:g}: is above health.interval_seconds={spec.health.interval:g}; "
            "lower it, or raise the interval"
        )
    if len(spec.hardening.read_write_paths) > _MAX_FOLDERS:
        raise InvalidConfig(
            f"ReadWritePaths: names {len(spec.hardening.read_write_paths)} folders, and {_MAX_FOLDERS} can be looked at before "
            "each start; name one around them"
        )
    for folder in spec.hardening.read_write_paths:
        if ours := opened(folder, scope):
            raise InvalidConfig(
                f"ReadWritePaths={folder!r}: would open {ours}, by which a model gets out of its sandbox; leave it out"
            )
    for assignment in spec.env:
        _check_folder(*assignment.partition("=")[::2], scope)
    backend.check(spec)


def _check_folder(variable: str, value: str, scope: Scope) -> None:
    """What names a folder that the server may write must be one that can be opened to it."""
    if variable not in FOLDER_VARIABLES:
        return
    if not value.startswith("/") or ".." in value.split("/"):
        raise InvalidConfig(f"env={variable + '=' + value!r}: give an absolute path without '..'")
    if ours := opened(value, scope):
        raise InvalidConfig(f"env={variable + '=' + value!r}: would open {ours}, which no model may see")


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as e:
        raise InvalidConfig(f"path={str(path)!r}: {e.strerror}; check the path and the modes of its folders") from None
    return True


def check_host(host: str) -> None:
    """Refuse what no server can listen on."""
    if host == "localhost":
        return
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise InvalidConfig(
            f"host={host!r}: use an address such as 127.0.0.1, 0.0.0.0 or ::1, or the whole path of a Unix socket"
        ) from None


def _check_socket(spec: ModelSpec, backend: Backend, scope: Scope) -> None:
    """Refuse a Unix socket that the server could not make, or that cortexd must not remove before a start."""
    path = Path(spec.socket)
    example = f"{sockets_folder(scope.runtime)}/{spec.name}/api.sock" if scope.runtime else "/srv/models/api.sock"
    if not backend.unix_sockets:
        raise InvalidConfig(
            f"host={spec.host!r}: {backend.name} cannot listen on a Unix socket; use an address such as 127.0.0.1"
        )
    if not re.fullmatch(r"[\w./@:+-]+\.sock", spec.socket, re.ASCII) or os.path.normpath(spec.socket) != spec.socket:
        raise InvalidConfig(
            f"host={spec.host!r}: the path of a socket has letters, digits and ./@:+_- only, no '..', and ends in .sock; "
            f"use one such as {example}"
        )
    if len(spec.socket) > _MAX_SOCKET_PATH:
        raise InvalidConfig(
            f"host={spec.host!r}: is longer than the {_MAX_SOCKET_PATH} characters of a socket's path; use a shorter one, "
            f"such as {example}"
        )
    folder = path.parent
    shared = [Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), scope.home, *([scope.runtime] if scope.runtime else [])]
    if ours := opened(str(folder), scope):
        raise InvalidConfig(f"host={spec.host!r}: would open {ours}, which no model may see; use one such as {example}")
    if any(place.is_relative_to(folder) for place in shared):
        raise InvalidConfig(
            f"host={spec.host!r}: the server may write all of its socket's folder, and {folder} holds more than that; "
            f"give it a folder of its own, as in {example}"
        )
    if (
        scope.runtime
        and folder.is_relative_to(scope.runtime)
        and not folder.is_relative_to(sockets_folder(scope.runtime))
    ):
        raise InvalidConfig(
            f"host={spec.host!r}: what lies in {scope.runtime} is hidden from models, but for "
            f"{sockets_folder(scope.runtime)}; use {example}"
        )
    if _exists(path) and not path.is_socket():
        raise InvalidConfig(f"host={spec.host!r}: is there and is no socket; use another path, such as {example}")
    there = next(parent for parent in path.parents if _exists(parent))
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        raise InvalidConfig(f"host={spec.host!r}: nothing can be made in {there}; use a path such as {example}")


def warnings_of(
    spec: ModelSpec, backend: Backend, others: Iterable[ModelSpec], explicit: Collection[str]
) -> Iterator[str]:
    """What a person should know about a model that can be run. `explicit`: the settings that were asked for; a default
    that is larger than the machine surprises nobody."""
    if note := backend.note:
        yield note
    if spec.hardening.security == "none":
        yield f"security=none: {UNPROTECTED}; for debugging only, then 'cortexctl set {spec.name} security='"
    elif spec.hardening.security == "baseline":
        yield (
            f"security=baseline: its server can read and write what you can, other models' secrets too; "
            f"'cortexctl set {spec.name} security=' fences it, where this machine gives its users namespaces"
        )
    for folder in spec.hardening.read_write_paths:
        if any(Path(folder).is_relative_to(Path.home() / name) for name in _RUN_LATER):
            yield f"ReadWritePaths={folder!r}: what its server writes there may run later outside of any sandbox"
    same = [o.name for o in others if o.name != spec.name and o.port == spec.port and overlap(o.host, spec.host)]
    if same and not spec.socket:
        who = f"model {same[0]} has" if len(same) == 1 else f"models {same[0]} and {len(same) - 1} more have"
        yield f"port={spec.port}: {who} it, too; only one of them can run at a time"
    if spec.port < _FIRST_UNPRIVILEGED and not spec.socket:
        yield f"port={spec.port}: most machines let only root listen below {_FIRST_UNPRIVILEGED}"
    memory, machine = spec.limits.memory, machine_memory()
    if "memory" in explicit and memory != INFINITY and memory > machine:
        yield f"memory={size_text(memory)}: this machine has {machine / 2**30:.1f}G, so the limit will not protect it"
    cores = os.cpu_count() or 1
    if "cpu" in explicit and spec.limits.cpu > cores:
        yield f"cpu={spec.limits.cpu:g}: this machine has {cores} cores, so the limit has no effect"


def secrets_warnings(spec: ModelSpec, api_key: str, secrets: Collection[str]) -> Iterator[str]:
    """What a person should know of who can use a model, and who can read what it is told. `api_key`: the variable from which
    its server reads the key that clients have to give; `secrets`: the names of its secrets."""
    given = dict(assignment.split("=", 1) for assignment in spec.env)
    if not _is_private(spec.host):
        keyed = api_key in secrets or bool(given.get(api_key)) or "--api-key-file" in spec.extra_args
        if not keyed:
            remedy = (
                f"'cortexctl secret set {spec.name} {api_key} --generate' or host=127.0.0.1"
                if api_key
                else "host=127.0.0.1"
            )
            yield f"host={spec.host}: {OPEN_TO_ALL}; {remedy}"
    if "--api-key-file" in spec.extra_args and api_key and api_key not in secrets and not given.get(api_key):
        yield (
            "extra_args: of the keys of --api-key-file cortexd has none to ask with, and sees less of the server; "
            f"'cortexctl secret set {spec.name} {api_key} --generate' makes one more for it"
        )
    for name, value in given.items():
        if name in secrets:
            yield f"env: {name} is a secret, too, and that one counts; take it out of env"
        elif looks_secret(name, value):
            yield f"env: {name} looks like a secret, and everybody who may ask systemd reads it; 'cortexctl secret set {spec.name} {name}'"
    if redacted(spec.extra_args) != spec.extra_args:
        yield "extra_args: something looks like a secret, and everybody on this machine can read it; use 'cortexctl secret set'"


def _is_private(host: str) -> bool:
    return host == "localhost" or host.startswith("/") or ipaddress.ip_address(host).is_loopback
