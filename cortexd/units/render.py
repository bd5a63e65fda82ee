"""A model's unit: spec and launch plan in, text out. Pure, but for a look at where links and scripts lead.

Why each line is there stands beside it; what systemd really makes of the directives in a user manager was measured on
252 and 257 (docs/architecture.md, "What the sandbox does").
"""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cortexd.backends import LaunchPlan
from cortexd.backends.base import opened
from cortexd.errors import InvalidConfig
from cortexd.kinds import size_text
from cortexd.model import ModelSpec
from cortexd.names import FOLDER_TEMPLATE, SLICE, hint_folder
from cortexd.scope import Scope
from cortexd.units import fences, quoting
from cortexd.units.loader import MISLEADING
from cortexd.units.programs import links, program_folders, steps
from cortexd.waiter.watch import GRACE

HINT_FILE = "seen"
"""In names.hint_folder: cortexd touches it when it sees a model's server get on with its start."""

_TMP = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))
_SHARED = (*_TMP, fences.RUN)
_MAX_UNIT_NAME = 255
_ON_A_LINE = 5  # names of variables, for a person who reads it
_MAX_PAUSE = 300  # seconds
_GROWING_PAUSE = 254  # the release of systemd that brought RestartSteps=; those before warn of it


@dataclass(slots=True)
class Tools:
    """Programs of this machine that a unit names, as absolute paths; and what else of the machine a unit depends on."""

    python: str
    """The interpreter that runs the waiter; not a virtual environment's link, which may go away."""
    waiter: str
    """The file that it runs; it needs those beside it."""
    env: str
    mkdir: str
    systemd: int
    """The release of the manager that will read the unit."""
    namespaces: bool = True
    """Whether a user's units get user and mount namespaces on this machine. Where they do not, a unit that asks for them does
    not start, or starts unprotected. Found out while the daemon runs (cortexd/sandbox/proving.py)."""
    left_out: frozenset[str] = frozenset()
    """Directives of the sandbox with which systemd cannot set up a unit on this machine; found out as well."""


@lru_cache(maxsize=256)
def probe_address(host: str) -> str:
    """The address at which a server that listens on `host` is asked: a wildcard's loopback of the same family."""
    if host in ("localhost", ""):
        return "127.0.0.1"
    if host.startswith("/"):
        return host
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return str(address)


def render_unit(spec: ModelSpec, plan: LaunchPlan, scope: Scope, tools: Tools, secrets: Collection[str] = ()) -> str:
    """The unit's text, without the marker line. `secrets`: the names of the variables in the model's file of secrets."""
    folders = places(spec, plan, scope)
    sections = {
        "Unit": [*_unit_section(spec, folders)],
        "Service": [
            *_service(spec, plan, tools),
            *_environment(spec, plan, scope),
            "",
            "# Resource limits",
            *_limits(spec),
            "",
            "# Sandbox",
            *_fitting(_sandbox(spec, plan, scope, tools, folders), spec, tools),
            "",
            *_taken_away(spec, plan, secrets),
        ],
        "Install": ["WantedBy=default.target"],
    }
    return "\n".join(f"[{name}]\n" + "\n".join(lines) + "\n" for name, lines in sections.items())


def render_folder_template(tools: Tools) -> str:
    """The text of FOLDER_TEMPLATE, without the marker line."""
    # A folder that a server may write may hold another one; a link planted there would open what it leads to.
    make = '[ "$(realpath -m -- "$0")" = "$0" ] && exec "$1" -p -m 0700 -- "$0"'
    return f"""[Unit]
Description=Folder %f for a model
Documentation=https://github.com/cortexlinux/cortex
# Models that share a folder run this one after the other; systemd would refuse the sixth within ten seconds.
StartLimitIntervalSec=0

[Service]
Type=oneshot
Slice={SLICE}
ExecStart=:/bin/sh -c {quoting.word(make)} "%f" {quoting.word(tools.mkdir)}
"""


def sockets_folder(runtime: Path) -> Path:
    """The one place in the user's runtime folder where models can have sockets: the rest of it is hidden from them."""
    return runtime / "models"


def written_folders(spec: ModelSpec, plan: LaunchPlan) -> list[str]:
    """Every folder that the server may write: the backend's and the user's own."""
    return list(dict.fromkeys([*map(str, plan.writes), *spec.hardening.read_write_paths]))


Places = list[tuple[str, str]]
"""Folders: where each lies, and its name."""


def places(spec: ModelSpec, plan: LaunchPlan, scope: Scope) -> Places:
    """The same, each as where it lies now and by its name: a unit names the former, so that no link that is changed later is
    followed. Raises InvalidConfig where it leads into what no model may see, or where the server itself could lead it."""
    named = written_folders(spec, plan)
    found = [(_lies_at(folder), folder) for folder in named]
    for real, folder in found:
        if real != os.path.normpath(folder):
            others = [Path(other) for other, name in found if name != folder]
            planted = [link for link in links(folder) if _lies_in(Path(link), others)]
            if planted:
                raise InvalidConfig(
                    f"folder {folder!r}: the server may write where {planted[0]} lies, which is a link to {real}; remove that link"
                )
            _refuse_opened(folder, real, scope)
    return found


def _lies_at(folder: str) -> str:
    """Where it lies; by its name where a link leads to what is not there: its disk is not mounted, and no other is to be
    filled instead. FOLDER_TEMPLATE fails then."""
    real = os.path.realpath(folder)
    if real == folder or os.path.exists(real):  # noqa: PTH110 - most are no links
        return real
    return real if all(os.path.exists(link) for link in links(folder)) else folder  # noqa: PTH110


def _refuse_opened(path: str, real: str, scope: Scope) -> None:
    if ours := opened(real, scope):
        raise InvalidConfig(
            f"path {path!r}: leads to {real}, and would open {ours}, which no model may see; remove the link, or name another path"
        )


def missing_folders(spec: ModelSpec, plan: LaunchPlan) -> str:
    """Those of written_folders that are not there, for a message."""
    return ", ".join(folder for folder in written_folders(spec, plan) if not Path(folder).is_dir())


def _unit_section(spec: ModelSpec, folders: Places) -> Iterator[str]:
    yield f"Description=Cortex Model: {spec.name}"
    yield "Documentation=https://github.com/cortexlinux/cortex"
    # Enabled, it is wanted by default.target, which would wait for a slow model without this line.
    yield "After=default.target"
    for folder in dict.fromkeys(real for real, _ in folders):
        unit = FOLDER_TEMPLATE.replace("@", "@" + quoting.instance_of_path(folder))
        if len(unit) > _MAX_UNIT_NAME:
            raise InvalidConfig(f"ReadWritePaths={folder!r}: is too long for a unit's name; use a shorter path")
        yield f"Requires={unit}"
        yield f"After={unit}"
    # [Unit] is where systemd reads these; in [Service] it ignores them.
    yield f"StartLimitIntervalSec={quoting.seconds(spec.restart.limit_interval)}"
    yield f"StartLimitBurst={spec.restart.limit_burst}"


def _service(spec: ModelSpec, plan: LaunchPlan, tools: Tools) -> Iterator[str]:
    yield "Type=exec"  # a missing executable fails the start job; Type=simple would call it started
    yield f"Slice={SLICE}"
    if spec.socket:  # the one that a former run left, which nobody can listen on again
        yield "ExecStartPre=:" + " ".join(map(quoting.word, (tools.env, "-i", "rm", "-f", "--", spec.socket)))
    yield "ExecStart=:" + " ".join(map(quoting.word, plan.argv))
    yield from _readiness(spec, plan, tools)
    yield f"KillSignal={plan.kill_signal}"
    yield f"KillMode={plan.kill_mode}"  # SIGKILL for the whole group after it: workers left behind would keep the GPU
    yield f"TimeoutStopSec={plan.stop_seconds}"
    # The signals are for the waiter: one that is stopped before it can catch them would leave the unit failed.
    yield "SuccessExitStatus=" + " ".join(("SIGTERM", "SIGINT", *plan.success_exit_status))
    yield f"Restart={spec.restart.restart}"
    yield from _pause(spec.restart.restart_seconds, tools)
    yield "OOMPolicy=kill"  # a worker killed for memory leaves a server that answers and cannot serve
    yield "StandardOutput=journal"
    yield "StandardError=journal"
    yield f"SyslogIdentifier=cortex-{spec.name}"
    if spec.log_level != "info":  # which is systemd's own default
        yield f"SyslogLevel={spec.log_level}"


def _pause(seconds: float, tools: Tools) -> Iterator[str]:
    """Before a restart: twice as long each time, up to _MAX_PAUSE, where systemd can."""
    yield f"RestartSec={quoting.seconds(seconds)}"
    if steps := _steps(seconds, tools.systemd):
        yield f"RestartSteps={steps}"
        yield f"RestartMaxDelaySec={_MAX_PAUSE}"


def _steps(seconds: float, systemd: int) -> int:
    """Restarts until the pause is as long as it gets; 0 where it does not grow."""
    grows = systemd >= _GROWING_PAUSE and 0 < seconds < _MAX_PAUSE
    return math.ceil(math.log2(_MAX_PAUSE / seconds)) if grows else 0


def restart_pause(seconds: float, restarts: int, systemd: int) -> float:
    """How long systemd of that release waits after so many restarts, where it waits `seconds` at first (src/core/service.c,
    service_restart_usec_next)."""
    if not (steps := _steps(seconds, systemd)):
        return seconds
    return float(min(_MAX_PAUSE, seconds * (_MAX_PAUSE / seconds) ** (restarts / steps)))


def _environment(spec: ModelSpec, plan: LaunchPlan, scope: Scope) -> Iterator[str]:
    own = dict(assignment.split("=", 1) for assignment in spec.env)
    for name, value in {**plan.environment, **own}.items():
        yield "Environment=" + quoting.word(f"{name}={value}")
    # Wins over Environment=. Always there, so that a secret needs no other unit; absent, it is passed over.
    yield f"EnvironmentFile=-{quoting.file_pattern(str(scope.secrets / spec.name / 'environment'))}"


def _taken_away(spec: ModelSpec, plan: LaunchPlan, secrets: Collection[str]) -> Iterator[str]:
    """Of the environment: also of what the unit itself gives (measured on 252 and 257)."""
    own = {assignment.partition("=")[0] for assignment in spec.env}
    unset = [name for name in plan.unset_environment if name not in own and name not in secrets]
    for some in range(0, len(unset), _ON_A_LINE):
        yield "UnsetEnvironment=" + " ".join(unset[some : some + _ON_A_LINE])


def _readiness(spec: ModelSpec, plan: LaunchPlan, tools: Tools) -> Iterator[str]:
    """The start job ends when the server is ready: for systemctl, at boot and while cortexd is dead, too."""
    if not spec.health.endpoint:
        return
    # The model's environment may hold a PYTHONPATH or LD_LIBRARY_PATH that this program must not see.
    sealed = ["-i", "NOTIFY_SOCKET=${NOTIFY_SOCKET}"]
    if plan.api_key:
        # It may hold the key, too, for which the endpoint may ask: a command line would show that, and /proc/PID/environ of
        # the server is closed in the sandbox (measured on 252).
        sealed = [word for name in MISLEADING for word in ("-u", name)]
    command = [tools.env, *sealed, tools.python, "-I", "-S", tools.waiter]
    command += ["--pid", "${MAINPID}", "--address", probe_address(spec.host), "--port", str(spec.port)]
    command += ["--path", spec.health.endpoint, "--timeout", quoting.seconds(spec.health.startup_timeout)]
    hint = f"%t/{hint_folder(spec.name)}/{HINT_FILE}"
    command += ["--stall", quoting.seconds(spec.health.startup_stall), "--hint", hint, *plan.load]
    if plan.api_key:
        command += ["--key-variable", plan.api_key]
    ours = ("NOTIFY_SOCKET=${NOTIFY_SOCKET}", "${MAINPID}", hint)
    yield "ExecStartPost=" + " ".join(w if w in ours else quoting.expanded_word(w) for w in command)
    yield "NotifyAccess=exec"  # lets the waiter say how far it is, and have systemd wait longer while something moves
    yield f"TimeoutStartSec={quoting.seconds(spec.health.startup_stall + GRACE)}"
    # Where cortexd tells the waiter of what is hidden from it. systemd makes it, whoever starts the unit, and removes it.
    yield f"RuntimeDirectory={hint_folder(spec.name)}"
    yield "RuntimeDirectoryMode=0700"


def _limits(spec: ModelSpec) -> Iterator[str]:
    limits = spec.limits
    yield f"CPUQuota={limits.cpu * 100:.2f}".rstrip("0").rstrip(".") + "%"
    yield f"CPUWeight={limits.cpu_weight}"
    yield f"MemoryMax={size_text(limits.memory)}"
    yield f"MemoryHigh={size_text(limits.memory_high)}"
    yield f"IOWeight={limits.io_weight}"
    yield f"TasksMax={limits.tasks_max}"


def sandbox_lines(spec: ModelSpec, plan: LaunchPlan, scope: Scope, tools: Tools) -> list[str]:
    """The lines of [Service] that make the sandbox, and nothing else: for a unit that tries it."""
    return _fitting(_sandbox(spec, plan, scope, tools, places(spec, plan, scope)), spec, tools)


def unseen(paths: Iterable[Path], spec: ModelSpec, plan: LaunchPlan, scope: Scope, tools: Tools) -> list[Path]:
    """Those of `paths` (absolute, without links) in whose place the server sees nothing."""
    if not _isolates(spec, tools):
        return []
    shown = [*map(Path, _hidden(spec, plan, scope, tools)), *map(Path, written_folders(spec, plan)), *fences.SHOWN]
    covered = [*_covered(spec, scope), *([scope.runtime] if scope.runtime else [])]
    closed = [scope.data, scope.unit_folder]
    return [p for p in paths if _lies_in(p, closed) or (_lies_in(p, covered) and not _lies_in(p, shown))]


def has_namespaces(spec: ModelSpec) -> bool:
    """Whether the model's sandbox hides or protects folders, or what else systemd does for a user in namespaces alone."""
    h = spec.hardening
    return h.security in ("default", "strict") or bool(
        h.protect_system != "false"
        or h.protect_home != "false"
        or h.private_tmp
        or h.private_devices
        or h.protect_kernel_tunables
        or h.protect_kernel_modules
        or h.protect_control_groups
        or h.protect_kernel_logs
        or h.protect_clock
        or h.protect_hostname
    )


def _isolates(spec: ModelSpec, tools: Tools) -> bool:
    """Whether the unit says so. Where the sandbox is required it does in any case, and systemd itself refuses to start it."""
    return has_namespaces(spec) and (tools.namespaces or spec.hardening.sandbox_required)


def _sandbox(spec: ModelSpec, plan: LaunchPlan, scope: Scope, tools: Tools, folders: Places) -> Iterator[str]:
    hardening = spec.hardening
    if hardening.security in ("default", "strict"):
        yield "LimitCORE=0"  # a dump would hold secrets; another model can cause one by a signal, and read it
    yield f"NoNewPrivileges={quoting.boolean(hardening.no_new_privileges)}"
    yield f"RestrictRealtime={quoting.boolean(hardening.restrict_realtime)}"
    yield f"RestrictSUIDSGID={quoting.boolean(hardening.restrict_suid_sgid)}"
    if hardening.restrict_namespaces:
        yield "RestrictNamespaces=true"
    if hardening.restrict_address_families:
        # The waiter asks the kernel by netlink whose socket it is that answers.
        yield "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK"
    if hardening.system_call_filter:
        yield "SystemCallFilter=@system-service"
        yield "SystemCallErrorNumber=EPERM"  # a server that tries another call goes on without it
    if hardening.lock_personality:
        yield "LockPersonality=true"
    if hardening.memory_deny_write_execute:
        yield "MemoryDenyWriteExecute=true"
    if hardening.umask != "0022":
        yield f"UMask={hardening.umask}"
    if _isolates(spec, tools):
        yield from _namespaces(spec, plan, scope, tools, folders)


def _fitting(lines: Iterable[str], spec: ModelSpec, tools: Tools) -> list[str]:
    """Those with which systemd can set up a unit here. Where the sandbox is required it has to be all."""
    fitting = [*lines]
    for directive in () if spec.hardening.sandbox_required else tools.left_out:
        fitting = fences.without(fitting, directive)
    return fitting


def _namespaces(spec: ModelSpec, plan: LaunchPlan, scope: Scope, tools: Tools, folders: Places) -> Iterator[str]:
    """What systemd does for a user's service in a user namespace alone."""
    hardening = spec.hardening
    # Without it systemd 252 mounts nothing, or refuses to start the unit, and later ones go on unprotected where they fail.
    yield "PrivateUsers=true"
    yield f"ProtectSystem={hardening.protect_system}"
    yield f"ProtectHome={hardening.protect_home}"
    yield f"PrivateTmp={quoting.boolean(hardening.private_tmp)}"
    if hardening.private_tmp:
        yield "TemporaryFileSystem=/dev/shm:mode=1777"  # segments of shared memory that a killed server leaves would stay
    yield f"PrivateDevices={quoting.boolean(hardening.private_devices)}"
    yield f"ProtectKernelTunables={quoting.boolean(hardening.protect_kernel_tunables)}"
    yield f"ProtectKernelModules={quoting.boolean(hardening.protect_kernel_modules)}"
    yield f"ProtectControlGroups={quoting.boolean(hardening.protect_control_groups)}"
    if hardening.protect_control_groups and not hardening.restrict_namespaces:
        # Root of a user namespace mounts them anew in one of these, and lifts every limit of its own (measured on 257).
        yield "RestrictNamespaces=~cgroup"
    if hardening.protect_kernel_logs:
        yield "ProtectKernelLogs=true"
    if hardening.protect_clock:
        yield "ProtectClock=true"
    if hardening.protect_hostname:
        yield "ProtectHostname=true"
    covered = _covered(spec, scope)
    if scope.runtime and spec.socket:
        covered.append(sockets_folder(scope.runtime))
    yield from _opened_folders(folders, covered)
    yield from fences.machine()
    # The user's bus and manager would start anything outside this sandbox; sd_notify(3) still works.
    yield "TemporaryFileSystem=%t:ro"
    yield "BindReadOnlyPaths=%t/systemd/notify"
    if spec.health.endpoint:
        yield f"BindReadOnlyPaths=-%t/{hint_folder(spec.name)}"
    # Another model's settings stand in its unit.
    for ours in (scope.data, scope.unit_folder):
        yield f"InaccessiblePaths=-{quoting.path(str(ours))}"
    written = [Path(folder) for folder in written_folders(spec, plan)]
    for hidden in _hidden(spec, plan, scope, tools):
        if _lies_in(Path(hidden), written):  # it is there with that folder; a link planted in it is not followed
            continue
        if (real := os.path.realpath(hidden)) != hidden:
            _refuse_opened(hidden, real, scope)
        yield f"BindReadOnlyPaths={_bound(real, hidden)}"


def _opened_folders(found: Places, covered: list[Path]) -> Iterator[str]:
    names = {Path(folder) for _, folder in found}
    for real, folder in found:
        if not names.isdisjoint(Path(folder).parents):
            continue  # the one around it is open
        # What another file system lies over has to be brought back.
        over = _lies_in(Path(folder), covered)
        if over:
            yield f"BindPaths={_bound(real, folder)}"
        if real != folder and _lies_in(Path(real), covered):
            yield f"BindPaths={quoting.path(real)}"
        elif not over:
            yield f"ReadWritePaths={quoting.path(real)}"


def _bound(real: str, name: str) -> str:
    """What lies at `real`, under the name by which the server knows it."""
    return quoting.path(real) if real == name else f"{quoting.path(real)}:{quoting.path(name)}"


def _covered(spec: ModelSpec, scope: Scope) -> list[Path]:
    """The folders in whose place the server sees an empty one."""
    covered = [fences.RUN, *(_TMP if spec.hardening.private_tmp else ())]
    if spec.hardening.protect_home in ("tmpfs", "true"):
        covered += [scope.home, Path("/home"), Path("/root")]
    return covered


def _lies_in(path: Path, folders: list[Path]) -> bool:
    # As text: pathlib takes most of the time in which a thousand models are read.
    inside = f"{path}/"
    return any(inside.startswith(str(folder).rstrip("/") + "/") for folder in folders)


def _opens(path: Path, closed: Path | None) -> bool:
    return closed is not None and (_lies_in(path, [closed]) or _lies_in(closed, [path]))


@lru_cache(maxsize=8)
def _python_folders(python: str, home: Path) -> list[Path]:
    """Of our own Python, which stays what it is while we run."""
    return program_folders(Path(python), home, _SHARED)


def _hidden(spec: ModelSpec, plan: LaunchPlan, scope: Scope, tools: Tools) -> list[str]:
    """What the server and the waiter need and the sandbox would hide: in /tmp, /run, or a home that is replaced by an empty one;
    nothing of the runtime folder."""
    covered = _covered(spec, scope)
    wanted = [
        *program_folders(Path(plan.argv[0]), scope.home, _SHARED),
        *(step for path in plan.reads for step in steps(path)),
    ]
    ours = [*_python_folders(tools.python, scope.home), Path(tools.waiter).parent] if spec.health.endpoint else []
    wanted += ours
    paths = [path for path in wanted if _lies_in(path, covered) and not _opens(path, scope.runtime)]
    if spec.hardening.protect_home == "true":
        # systemd puts a folder there in which nothing can be mounted (measured on 252).
        for path in [*paths, *map(Path, written_folders(spec, plan))]:
            if _lies_in(path, covered) and not _lies_in(path, [*_SHARED]):
                who = "cortexd needs in its sandbox" if path in ours else "the model needs"
                raise InvalidConfig(f"ProtectHome='true': hides {path}, which {who}; use tmpfs, or move it")
    return list(dict.fromkeys(map(str, paths)))
