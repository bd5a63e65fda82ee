"""What a backend is: settings in, launch plan out. Pure: no systemd, no D-Bus, and no files but for `find`.

Flags, signals and writable folders are those of the programs' own documentation and source, as noted in each file.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from cortexd.errors import InvalidConfig
from cortexd.kinds import Value, redacted
from cortexd.model import PROBE_ENGINE, PROBE_HTTP, ModelSpec
from cortexd.scope import Scope


@dataclass(frozen=True, slots=True)
class EngineProbe:
    """A request that makes the engine generate one token: what a health endpoint does not show."""

    path: str
    """For a POST."""
    body: str
    """JSON."""
    asleep: tuple[str, str] | None = None
    """Where a server that can sleep says whether it does: a path for a GET, and a regular expression that is found in
    the answer if so. One that cannot sleep has none, or answers 404."""


@dataclass(frozen=True, slots=True)
class Activity:
    """Where a running server tells how much it has done: its sum grows as long as it works."""

    path: str
    """For a GET; the answer is in Prometheus' text format."""
    counters: tuple[str, ...]
    """Tokens and completed requests, by the names of the metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchPlan:
    """How to run one model's server, in terms that need no knowledge of the backend."""

    argv: tuple[str, ...]
    """argv[0] is an absolute path."""
    environment: Mapping[str, str]
    unset_environment: tuple[str, ...] = ()
    """Variables that would change the server's mind if the user manager had them."""
    writes: tuple[Path, ...] = ()
    """Folders it must be able to write; made before every start."""
    reads: tuple[Path, ...] = ()
    """Files and folders of the model's that it must see, wherever they lie."""
    kill_signal: str = "SIGTERM"
    kill_mode: str = "mixed"
    """Who gets the signal (systemd.kill(5)): the main process, or with `control-group` its workers, too."""
    stop_seconds: int = 20
    """From the signal to SIGKILL."""
    success_exit_status: tuple[str, ...] = field(default=())
    """Exit statuses that are a clean end, beside 0."""
    load: tuple[str, ...] = ()
    """Arguments for the waiter: what it has to have the server do before it is ready (see cortexd/waiter)."""
    api_key: str = ""
    """The variable from which it reads the key that its clients have to give; empty where it has none."""
    engine: EngineProbe | None = None
    activity: Activity | None = None


_STARTED_BY = (
    *(".config/systemd", ".config/environment.d", ".local/share/systemd", ".local/share/dbus-1"),
    ".local/share/cortexd",  # where scripts/install puts our own program
)
"""In home: what says which programs services run, and with which variables."""
_KERNEL = ("/proc", "/sys/fs/cgroup")


def opened(folder: str, scope: Scope) -> str:
    """Which of the folders that no model may write would be open to one that may write `folder`: what could change a unit or a
    command line, holds others' secrets, or is the way to the bus and the service manager. Empty where none."""
    folder = "/" + os.path.normpath(folder).lstrip("/")
    manager = [scope.runtime / name for name in ("bus", "systemd")] if scope.runtime else []
    others = [*(scope.home / name for name in _STARTED_BY), *manager, *_KERNEL]
    for ours in map(str, (scope.data, scope.unit_folder, *scope.backend_folders, *others)):
        # By name, which may lead elsewhere tomorrow, and by where both lie now.
        if _meet(folder, ours) or _meet(os.path.realpath(folder), os.path.realpath(ours)):
            return ours
    return ""


def _meet(one: str, other: str) -> bool:
    """Whether one of two folders lies in the other, as texts."""
    return f"{one}/".startswith(f"{other.rstrip('/')}/") or f"{other}/".startswith(f"{one.rstrip('/')}/")


class Backend(ABC):
    """One kind of model server."""

    name: ClassVar[str]
    executables: ClassVar[tuple[str, ...]]
    """Names to look for on PATH, best first."""
    endpoint: ClassVar[str]
    """Health endpoint: an HTTP path that answers 2xx when the server is ready."""
    healthy: ClassVar[str] = ""
    """A regular expression for all of what a well server answers there; empty where its status alone tells."""
    quantizations: ClassVar[tuple[str, ...]] = ()
    tasks_max: ClassVar[int] = 512
    restart: ClassVar[str] = "on-failure"
    takes_extra_args: ClassVar[bool] = True
    owned: ClassVar[Mapping[str, str]] = {}
    """Arguments that a setting gives, and the setting: in extra_args they would contradict it."""
    secret_flags: ClassVar[Mapping[str, str]] = {}
    """Arguments that carry a secret, and the variable from which the server reads it as well: an argument list is public."""
    owned_variables: ClassVar[Mapping[str, str]] = {"CUDA_VISIBLE_DEVICES": "gpus", "HIP_VISIBLE_DEVICES": "gpus"}
    """Variables that a setting gives, and the setting: in env they would contradict it."""
    note: ClassVar[str] = ""
    """What every model of this backend should warn of."""
    splits: ClassVar[bool] = True
    """Whether tensor_parallel means anything to it."""
    version: ClassVar[tuple[str, ...]] = ()
    """Arguments with which its executable says its version and ends with 0; empty where it is not asked."""
    unix_sockets: ClassVar[bool] = False
    """Whether it can listen on a Unix socket."""
    compiles: ClassVar[bool] = True
    """Whether it may make machine code while it runs without a GPU (with one, its driver does)."""
    folder_has: ClassVar[tuple[str, ...]] = ()
    """Of these files a model's folder must have one."""

    def defaults(self, gpus: int) -> dict[str, Value]:
        """Settings whose default is the backend's, for a model on that many GPUs."""
        return {"health.endpoint": self.endpoint, "Restart": self.restart, "TasksMax": self.tasks_max}

    def find(self, search_path: str) -> str | None:
        """The absolute path of its executable on a PATH, or None."""
        for name in self.executables:
            found = shutil.which(name, path=search_path)
            if found:
                return str(Path(found).absolute())
        return None

    def missing(self) -> str:
        """What to say where `find` found nothing."""
        return f"exec: no {' or '.join(self.executables)} on your PATH; install {self.name}, or give --exec FILE"

    def check_reference(self, path: str) -> None:
        """Refuse a path that is neither a local one nor a reference as this backend's hub writes them: InvalidConfig."""
        check_reference(path)

    def check(self, spec: ModelSpec) -> None:
        """Refuse settings that this backend cannot serve: InvalidConfig naming setting, value and remedy."""
        if spec.quantization and spec.quantization not in self.quantizations:
            has = ", ".join(self.quantizations)
            remedy = f"{self.name} has {has}" if has else f"{self.name} takes it from the model's file; leave it out"
            raise InvalidConfig(f"quantization={spec.quantization!r}: {remedy}")
        if spec.tensor_parallel > max(1, len(spec.gpus)):
            raise InvalidConfig(
                f"tensor_parallel={spec.tensor_parallel}: needs as many GPUs, and gpus names {len(spec.gpus)}; "
                f"give --gpus 0,…,{spec.tensor_parallel - 1} or a smaller number"
            )
        if spec.tensor_parallel > 1 and not self.splits:
            raise InvalidConfig(f"tensor_parallel={spec.tensor_parallel}: {self.name} has no such option; leave it out")
        if spec.extra_args and not self.takes_extra_args:
            raise InvalidConfig(
                f"extra_args={redacted(spec.extra_args)!r}: {self.name} takes no arguments; leave it out"
            )
        for word in extra(spec):
            if variable := self.secret_flags.get(flag_of(word)):
                raise InvalidConfig(
                    f"extra_args={flag_of(word)!r}: would show a secret to everybody on this machine; use "
                    f"'cortexctl secret set {spec.name} {variable}'"
                )
            if setting := self.owned.get(flag_of(word)):
                raise InvalidConfig(f"extra_args={word!r}: is given by a setting; use {setting}=")

    def check_plan(self, spec: ModelSpec, plan: LaunchPlan) -> None:
        """Refuse what the plan has no answer to, and variables of the caller's that would contradict it: InvalidConfig naming
        setting, value and remedy."""
        if spec.health.probe == PROBE_ENGINE and plan.engine is None:
            raise InvalidConfig(
                f"health.probe={PROBE_ENGINE!r}: {self.name} has no request for a token; use {PROBE_HTTP}"
            )
        for assignment in spec.env:
            name, _, value = assignment.partition("=")
            setting = self.owned_variables.get(name)
            if setting and value != plan.environment.get(name):
                raise InvalidConfig(f"env={name!r}: is given by a setting; use {setting}=")
            if name in plan.unset_environment and name != plan.api_key:
                raise InvalidConfig(f"env={name!r}: {self.name} takes it for an option; use a setting, or extra_args")

    def version_command(self, spec: ModelSpec) -> tuple[str, ...]:
        """What to run to see that its executable works, or nothing."""
        return (spec.exec, *self.version) if self.version else ()

    @abstractmethod
    def plan(self, spec: ModelSpec, scope: Scope) -> LaunchPlan:
        """The launch plan of a checked model."""


# org/name, with an optional revision or quantization behind a colon; the hub's own rule for names.
_REFERENCE = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")


def is_reference(path: str) -> bool:
    """Whether `path` is a reference to a model hub rather than a local path."""
    return not path.startswith("/")


def check_reference(path: str) -> None:
    """Refuse what is neither an absolute path nor a reference such as org/name."""
    if is_reference(path) and not _REFERENCE.fullmatch(path):
        raise InvalidConfig(f"path={path!r}: is neither a file or folder that exists nor a reference such as org/name")


def gpu_environment(spec: ModelSpec) -> dict[str, str]:
    """Which GPUs the server sees. Both names carry the same value: on ROCm a differing pair is an error."""
    visible = ",".join(spec.gpus)
    return {"CUDA_VISIBLE_DEVICES": visible, "HIP_VISIBLE_DEVICES": visible, "TOKENIZERS_PARALLELISM": "false"}


_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


def path_environment(spec: ModelSpec) -> dict[str, str]:
    """PATH for a server that runs programs which are installed beside it, as in a virtual environment."""
    folder = str(Path(spec.exec).parent)
    if ":" in folder or folder in _SYSTEM_PATH.split(":"):
        return {}
    return {"PATH": f"{folder}:{_SYSTEM_PATH}"}


def packages(program: Path, pattern: str) -> list[Path]:
    """What a program's own Python environment has installed."""
    return list(program.absolute().parent.parent.glob(f"lib*/python3*/*-packages/{pattern}"))


_FIRST_PORT, _LAST_PORT = 1024, 32768
"""Unprivileged, and below the kernel's ephemeral range."""


def port_beside(port: int, distance: int) -> int:
    """Another port that goes with this one and no other."""
    return _FIRST_PORT + (port - _FIRST_PORT + distance) % (_LAST_PORT - _FIRST_PORT)


def flag_of(word: str) -> str:
    """The option that an argument names, as its program's manual spells it: vLLM and llama.cpp take --a_b for --a-b."""
    flag = word.partition("=")[0]
    return flag.replace("_", "-") if flag.startswith("--") else flag


def extra(spec: ModelSpec) -> list[str]:
    """extra_args, split as a shell would."""
    return shlex.split(spec.extra_args)


def local_model(spec: ModelSpec) -> tuple[Path, ...]:
    """The model's own file or folder, if it is a local one. All parts of a split GGUF lie beside each other."""
    if is_reference(spec.path):
        return ()
    path = Path(spec.path)
    return (path.parent,) if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name) else (path,)


def socket_folder(spec: ModelSpec) -> tuple[Path, ...]:
    """Where it makes its Unix socket, if it listens on one."""
    return (Path(spec.socket).parent,) if spec.socket else ()


def hub_cache(scope: Scope) -> dict[str, str]:
    """Where models from the Hugging Face hub are kept, by variable. Said in the unit, so that the folder that the sandbox
    opens is the one that the server uses."""
    home = scope.kept_in("HF_HOME", scope.cache / "huggingface")
    return {"HF_HOME": str(home), "HF_HUB_CACHE": str(scope.kept_in("HF_HUB_CACHE", home / "hub"))}


def folders(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """The folders that such variables name, without those that lie in another of them."""
    paths = [Path(value) for value in environment.values()]
    return tuple(p for p in paths if not any(p != q and p.is_relative_to(q) for q in paths))
