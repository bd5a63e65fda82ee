"""The words of the field: what a model is, setting by setting.

Each setting stands once, as a dataclass field that carries its public name, its kind, its default and its meaning;
`SETTINGS` is the table made of them, and the command line, D-Bus, the database and `show` use exactly its names.
A default of None is derived: from another setting or from the backend (see `build_spec`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

from cortexd import kinds
from cortexd.errors import InvalidConfig
from cortexd.kinds import GIB, INFINITY, Kind, Value

DEFAULT_BACKEND = "vllm"
PROBE_HTTP, PROBE_ENGINE = "http", "engine"
AUTO_PORT = "auto"
_MAX_SHOWN = 80  # characters of a bad value in a message


def _setting(kind: Kind, default: Value | None, doc: str, name: str = "", *, live: bool = False) -> Any:
    """A dataclass field that is a setting. `live`: a change needs no restart of the server."""
    return field(default=default, metadata={"kind": kind, "doc": doc, "name": name, "live": live})


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceLimits:
    """What the control group may use (systemd.resource-control(5)); `limits.py` says how each is changed and read back."""

    memory: int = _setting(kinds.SIZE, 32 * GIB, "hard memory limit (MemoryMax=)", live=True)
    memory_high: int = _setting(
        kinds.SIZE,
        None,
        "soft memory limit, above which memory is reclaimed; memory minus an eighth, at most 8G",
        "MemoryHigh",
        live=True,
    )
    cpu: float = _setting(kinds.CORES, 4.0, "CPU cores (CPUQuota= is this times 100 %)", live=True)
    cpu_weight: int = _setting(kinds.WEIGHT, 100, "CPU share against others", "CPUWeight", live=True)
    io_weight: int = _setting(kinds.WEIGHT, 100, "I/O share against others", "IOWeight", live=True)
    tasks_max: int = _setting(kinds.COUNT, None, "processes and threads", "TasksMax", live=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardening:
    """The sandbox (systemd.exec(5)); what a user manager makes of it stands in docs/architecture.md."""

    no_new_privileges: bool = _setting(kinds.BOOLEAN, True, "no privileges through exec", "NoNewPrivileges")
    protect_system: str = _setting(
        kinds.choice("strict", "full", "true", "false"), "strict", "read-only system", "ProtectSystem"
    )
    protect_home: str = _setting(
        kinds.choice("read-only", "tmpfs", "true", "false"),
        "read-only",
        "home as the server sees it",
        "ProtectHome",
    )
    private_tmp: bool = _setting(kinds.BOOLEAN, True, "a /tmp and /var/tmp of its own", "PrivateTmp")
    private_devices: bool = _setting(kinds.BOOLEAN, False, "no device nodes; hides the GPU", "PrivateDevices")
    restrict_realtime: bool = _setting(kinds.BOOLEAN, True, "no realtime scheduling", "RestrictRealtime")
    restrict_suid_sgid: bool = _setting(kinds.BOOLEAN, True, "no set-user-ID or set-group-ID files", "RestrictSUIDSGID")
    protect_kernel_tunables: bool = _setting(
        kinds.BOOLEAN, True, "read-only /proc/sys and /sys", "ProtectKernelTunables"
    )
    protect_kernel_modules: bool = _setting(kinds.BOOLEAN, True, "no loading of kernel modules", "ProtectKernelModules")
    protect_control_groups: bool = _setting(kinds.BOOLEAN, True, "read-only control groups", "ProtectControlGroups")
    restrict_namespaces: bool = _setting(kinds.BOOLEAN, False, "no namespaces of its own", "RestrictNamespaces")
    restrict_address_families: bool = _setting(
        kinds.BOOLEAN, False, "no sockets but IP, Unix and netlink ones", "RestrictAddressFamilies"
    )
    system_call_filter: bool = _setting(
        kinds.BOOLEAN, False, "the system calls of ordinary services alone (@system-service)", "SystemCallFilter"
    )
    lock_personality: bool = _setting(kinds.BOOLEAN, False, "no other execution domain", "LockPersonality")
    memory_deny_write_execute: bool = _setting(
        kinds.BOOLEAN, False, "no memory to write and execute; breaks compilers at run time", "MemoryDenyWriteExecute"
    )
    protect_kernel_logs: bool = _setting(kinds.BOOLEAN, False, "no kernel log", "ProtectKernelLogs")
    protect_clock: bool = _setting(kinds.BOOLEAN, False, "no setting of the clock", "ProtectClock")
    protect_hostname: bool = _setting(kinds.BOOLEAN, False, "no setting of the host's name", "ProtectHostname")
    umask: str = _setting(
        kinds.choice("0022", "0027", "0077"),
        "0022",
        "rights that its files do not get; 0022 is the manager's own",
        "UMask",
    )
    security: str = _setting(
        kinds.choice("baseline", "default", "strict", "none"),
        "default",
        "the profile that the settings of the sandbox come from, where they are not given themselves",
    )
    sandbox_required: bool = _setting(
        kinds.BOOLEAN, False, "refuse to start where something of the sandbox is not in force, instead of a warning"
    )
    read_write_paths: tuple[str, ...] = _setting(
        kinds.PATHS, (), "folders that the server may write beside what its backend needs", "ReadWritePaths"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthPolicy:
    """When a server counts as ready, and when as dead. Times are seconds."""

    enabled: bool = _setting(
        kinds.BOOLEAN, True, "liveness probes, and a restart when they fail", "health.enabled", live=True
    )
    endpoint: str = _setting(kinds.TEXT, None, "path of the health endpoint", "health.endpoint")
    interval: float = _setting(kinds.SECONDS, 30.0, "from one probe to the next", "health.interval_seconds", live=True)
    timeout: float = _setting(kinds.SECONDS, 10.0, "for an answer", "health.timeout_seconds", live=True)
    max_failures: int = _setting(
        kinds.integer(1, 1000), 3, "failed probes in a row before a restart", "health.max_failures", live=True
    )
    probe: str = _setting(
        kinds.choice(PROBE_HTTP, PROBE_ENGINE),
        PROBE_HTTP,
        "http: its endpoint alone; engine: also one token every 5 minutes in which it generated none",
        "health.probe",
        live=True,
    )
    busy_timeout: float = _setting(
        kinds.SECONDS,
        600.0,
        "how long CPU or GPU time alone excuses time-outs; then it has to generate a token",
        "health.busy_timeout_seconds",
        live=True,
    )
    startup_delay: float = _setting(
        kinds.number(0, 86400 * 7, "seconds"),
        60.0,
        "before the first probe, where no endpoint tells readiness",
        "health.startup_delay_seconds",
        live=True,
    )
    startup_timeout: float = _setting(
        kinds.SECONDS, 3600.0, "from start to ready at most", "health.startup_timeout_seconds"
    )
    startup_stall: float = _setting(
        kinds.SECONDS,
        120.0,
        "without a sign of progress before a start is given up; below 5, log lines and GPU memory may come too late to count",
        "health.startup_stall_seconds",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartPolicy:
    """systemd's own restarts (systemd.service(5)): the backstop that works while cortexd is dead."""

    restart: str = _setting(
        kinds.choice("no", "on-failure", "always"), None, "when systemd restarts the server", "Restart"
    )
    restart_seconds: float = _setting(kinds.number(0, 86400, "seconds"), 10.0, "pause before a restart", "RestartSec")
    limit_interval: float = _setting(
        kinds.number(0, 86400 * 7, "seconds"), 300.0, "window of the start limit", "StartLimitIntervalSec"
    )
    limit_burst: int = _setting(
        kinds.integer(1, 1000), 5, "starts within the window before systemd gives up", "StartLimitBurst"
    )
    max_restarts: int = _setting(
        kinds.integer(1, 1000), 5, "failed runs in a row before it is restarted no more", "max_restarts", live=True
    )
    stable_after: float = _setting(
        kinds.SECONDS,
        600.0,
        "ready for so long, a run clears those that failed before it",
        "stable_after_seconds",
        live=True,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A model with every setting filled in."""

    name: str
    path: str = _setting(kinds.TEXT, "", "the model: a file, a folder, or a reference such as org/name")
    backend: str = _setting(kinds.TEXT, DEFAULT_BACKEND, "the program that serves it")
    port: int = _setting(kinds.PORT, 8000, "TCP port, or auto for a free one")
    host: str = _setting(kinds.TEXT, "127.0.0.1", "address to listen on, or the path of a Unix socket")
    gpus: tuple[str, ...] = _setting(kinds.GPUS, ("0",), "GPUs that it may see")
    max_model_len: int = _setting(kinds.integer(1, 100_000_000), 4096, "context length in tokens")
    tensor_parallel: int = _setting(kinds.integer(1, 1024), 1, "GPUs that share one model")
    quantization: str = _setting(kinds.TEXT, "", "quantization method, where the backend has any")
    extra_args: str = _setting(kinds.ARGUMENTS, "", "more arguments for the backend")
    exec: str = _setting(kinds.TEXT, "", "the executable; found on the caller's PATH at registration")
    env: tuple[str, ...] = _setting(
        kinds.ENVIRONMENT, (), "variables for the server that are no secret; they win over the backend's own"
    )
    log_level: str = _setting(
        kinds.choice("info", "debug"),
        "info",
        "the level of its log lines; what says much at debug does not crowd out the lines of others at info",
    )
    gpu_memory_utilization: float = _setting(
        kinds.number(0.01, 1), 0.9, "share of the GPU's memory to use, where the backend has it"
    )
    limits: ResourceLimits
    hardening: Hardening
    health: HealthPolicy
    restart: RestartPolicy

    @property
    def socket(self) -> str:
        """The path of the Unix socket on which it listens; empty where that is a port."""
        return self.host if self.host.startswith("/") else ""


_SECTIONS: dict[str, type] = {
    "limits": ResourceLimits,
    "hardening": Hardening,
    "health": HealthPolicy,
    "restart": RestartPolicy,
}


_OPEN: dict[str, Value] = {
    "ProtectSystem": "false",
    "ProtectHome": "false",
    "PrivateTmp": False,
    "ProtectKernelTunables": False,
    "ProtectKernelModules": False,
    "ProtectControlGroups": False,
}
PROFILES: dict[str, dict[str, Value]] = {
    "none": {**_OPEN, "NoNewPrivileges": False, "RestrictRealtime": False, "RestrictSUIDSGID": False},
    "baseline": _OPEN,  # what needs no user namespace
    "default": {},
    # What a real llama-server was seen to live with. Not ProtectProc=: the waiter could no longer see how much memory its
    # unit's processes map. MemoryDenyWriteExecute= is the backend's to say.
    "strict": {
        "RestrictNamespaces": True,
        "RestrictAddressFamilies": True,
        "SystemCallFilter": True,
        "LockPersonality": True,
        "ProtectKernelLogs": True,
        "ProtectClock": True,
        "ProtectHostname": True,
        "UMask": "0077",
    },
}
"""What each profile makes of the settings of the sandbox, where that is not the table's default."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: public name, where it lies in ModelSpec, kind, default (None: derived), meaning."""

    name: str
    section: str
    attribute: str
    kind: Kind
    default: Value | None
    doc: str
    live: bool

    def of(self, spec: ModelSpec) -> Value:
        """This setting's value in `spec`."""
        owner = getattr(spec, self.section) if self.section else spec
        return cast(Value, getattr(owner, self.attribute))


def _rows(cls: type, section: str) -> Iterator[Setting]:
    for f in fields(cls):
        if "kind" in f.metadata:
            m = f.metadata
            yield Setting(m["name"] or f.name, section, f.name, m["kind"], cast(Any, f.default), m["doc"], m["live"])


SETTINGS: dict[str, Setting] = {
    row.name: row for section, cls in [("", ModelSpec), *_SECTIONS.items()] for row in _rows(cls, section)
}
"""Every setting by its public name."""


_WORDS: dict[tuple[str, object], Value] = {
    ("port", AUTO_PORT): AUTO_PORT,
    ("health.endpoint", "none"): "",  # nothing tells whether it is ready, or alive
}


def parse_settings(raw: Mapping[str, object]) -> dict[str, Value | None]:
    """What a caller gave, checked one by one and in canonical form; None means "the default again".

    Raises InvalidConfig, naming the setting, the value and the remedy.
    """
    parsed: dict[str, Value | None] = {}
    for name, value in raw.items():
        setting = SETTINGS.get(name)
        if setting is None:
            raise InvalidConfig(_unknown(name))
        if value == "":
            parsed[name] = None
            continue
        if isinstance(value, str) and (name, value) in _WORDS:
            parsed[name] = _WORDS[name, value]
            continue
        parsed[name] = _parsed(setting, value)
    return parsed


def stored_settings(raw: Mapping[str, object]) -> dict[str, Value]:
    """What was asked for, as `parse_settings` made it and a database or a unit file has kept it: here an empty text is a
    value of its own, and no word stands for another. Raises InvalidConfig."""
    for name in raw:
        if name not in SETTINGS:
            raise InvalidConfig(_unknown(name))
    return {name: _parsed(SETTINGS[name], value) for name, value in raw.items()}


def _parsed(setting: Setting, value: object) -> Value:
    try:
        return setting.kind.parse(value)
    except ValueError as e:
        shown = "…" if setting.kind is kinds.ENVIRONMENT else kinds.redacted(repr(value))
        shown = shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "…"
        raise InvalidConfig(f"{setting.name}={shown}: {e}") from None


def _unknown(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.5)
    folded = [known for known in SETTINGS if known.lower().replace("_", "") == name.lower().replace("_", "")]
    hint = f"did you mean {(folded or close)[0]}?" if folded or close else "'cortexctl show NAME' lists them all"
    return f"unknown setting {name[:80]!r}; {hint}"


def default_memory_high(memory: int) -> int:
    """The soft limit: an eighth below the hard one, at most 8 GiB below it."""
    return INFINITY if memory == INFINITY else memory - min(memory // 8, 8 * GIB)


def build_spec(name: str, explicit: Mapping[str, Value], backend_defaults: Mapping[str, Value]) -> ModelSpec:
    """The model with every setting filled in: what was asked for, else the backend's default, else the table's."""
    values: dict[str, Value] = {row.name: row.default for row in SETTINGS.values() if row.default is not None}
    values.update(backend_defaults)
    values.update(PROFILES[str(explicit.get("security", "default"))])
    values.update(explicit)
    if "MemoryHigh" not in explicit:
        values["MemoryHigh"] = default_memory_high(int(str(values["memory"])))
    arguments: dict[str, dict[str, Value]] = {section: {} for section in ("", *_SECTIONS)}
    for row in SETTINGS.values():
        arguments[row.section][row.attribute] = values[row.name]
    sections = {section: cls(**arguments[section]) for section, cls in _SECTIONS.items()}
    return ModelSpec(name=name, **cast(Any, arguments[""]), **cast(Any, sections))


def settings_of(spec: ModelSpec) -> dict[str, Value]:
    """Every setting of a model by its public name."""
    return {name: row.of(spec) for name, row in SETTINGS.items()}
