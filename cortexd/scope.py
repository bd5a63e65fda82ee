"""Which bus, which systemd manager and which folders belong together: one value, made in one place.

Nothing else in the code reads these from the environment or assumes the user's manager.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cortexd.bus import session_address

FOLDER_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS", "VLLM_CACHE_ROOT")
_HUB_VARIABLES = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH")


@dataclass(frozen=True, slots=True)
class Scope:
    """Where cortexd works. All paths are absolute."""

    bus_address: str
    """D-Bus address of the bus on which both cortexd and its systemd manager are found."""
    system_bus_address: str
    """Where logind is asked whether the user lingers."""
    home: Path
    unit_folder: Path
    """Where unit files go: the folder that outranks all others of the user's (systemd.unit(5))."""
    data: Path
    """Database, logs of failed runs; 0700, hidden from every model."""
    cache: Path
    search_path: str
    """PATH, for callers that send none."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of the manager's environment, those that say where backends keep what they download."""
    hub: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of the manager's environment, what Hugging Face's library goes by; may hold the user's token."""
    runtime: Path | None = None
    """XDG_RUNTIME_DIR (systemd's %t); None where there is none."""
    backend_folders: tuple[Path, ...] = ()
    """Where the user and the system keep backend files, the user's first."""

    def kept_in(self, variable: str, default: Path) -> Path:
        """The folder that the manager's environment names by `variable`, else `default`."""
        return Path(self.variables.get(variable) or default)

    def with_environment(self, assignments: Iterable[str]) -> Scope:
        """The same for a server with these variables (KEY=VALUE): what they say of folders wins over the manager's."""
        said = (assignment.partition("=")[::2] for assignment in assignments)
        return replace(self, variables={**self.variables, **{n: v for n, v in said if n in FOLDER_VARIABLES}})

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.data / "models.db"

    @property
    def secrets(self) -> Path:
        """A folder for each model that has some."""
        return self.data / "secrets"

    @property
    def logs(self) -> Path:
        """The last lines of failed runs."""
        return self.data / "logs"


def user_scope(environ: Mapping[str, str]) -> Scope:
    """The calling user's own manager and folders (XDG Base Directory Specification)."""
    home = Path(environ.get("HOME") or Path.home())

    def folder(variable: str, default: str) -> Path:
        value = environ.get(variable, "")
        # The specification: a relative path is invalid and to be ignored.
        return Path(value) if value.startswith("/") else home / default

    config = folder("XDG_CONFIG_HOME", ".config")
    shared = (environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":")
    return Scope(
        bus_address=session_address(environ),
        system_bus_address=environ.get("DBUS_SYSTEM_BUS_ADDRESS") or "unix:path=/run/dbus/system_bus_socket",
        home=home,
        unit_folder=config / "systemd" / "user",
        data=home / ".cortex",
        cache=folder("XDG_CACHE_HOME", ".cache"),
        search_path=environ.get("PATH") or os.defpath,
        hub={name: environ[name] for name in _HUB_VARIABLES if environ.get(name)},
        runtime=Path(runtime) if (runtime := environ.get("XDG_RUNTIME_DIR", "")).startswith("/") else None,
        variables={name: value for name in FOLDER_VARIABLES if (value := environ.get(name, "")).startswith("/")},
        backend_folders=(
            config / "cortex" / "backends",
            *(Path(data, "cortex", "backends") for data in shared if data.startswith("/")),
        ),
    )
