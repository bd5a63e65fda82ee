"""What was seen of the machine, the session and the installation: values alone, no looking and no judging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cortexd.diagnosis.machine import Folder


@dataclass(frozen=True, slots=True)
class Unseen:
    """A look that came to nothing."""

    reason: str


@dataclass(frozen=True, slots=True)
class Places:
    """The folders of the calling user, where cortexd has them, too (cortexd/scope.py)."""

    data: Path
    """~/.cortex"""
    unit_folder: Path
    """Where models' unit files are."""
    installed_units: Path
    """Where `make install` puts cortexd's own."""
    caches: tuple[Path, ...]
    """Where backends keep what they download."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manager:
    """The user's systemd manager (org.freedesktop.systemd1(5))."""

    version: str
    state: str
    """SystemState: running, degraded, starting, ..."""
    failed: tuple[str, ...] = ()
    """Units of ours."""
    failed_others: int = 0
    controllers: frozenset[str] | None = None
    """Of its control group: what the system's manager delegates to it. None where its group is not found."""
    everywhere: frozenset[str] = frozenset()
    """Controllers of the whole hierarchy: one that is missing there cannot be delegated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A registered model as far as it concerns the machine."""

    name: str
    host: str
    port: int
    io_weight: int | None = None
    warned: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A backend that the daemon knows, or one of those that are built in."""

    name: str
    executable: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Daemon:
    """cortexd on the bus and as a unit."""

    running: bool
    activatable: bool
    """The bus knows how to start it."""
    unit: Mapping[str, str | int] | None = None
    """LoadState, ActiveState, ... as systemd has them; None where no manager said."""
    version: str | None = None
    """None where it does not run, or does not answer."""
    warnings: tuple[str, ...] = ()
    models: tuple[Model, ...] | None = None
    backends: tuple[Listed, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """The user's bus, and who is on it."""

    address: str
    problem: str = ""
    """Why it cannot be reached: a sentence with its remedy behind a semicolon. Then there is nothing else."""
    other_bus: str = ""
    """The socket of the user manager's own bus, where it is another one."""
    manager: Manager | Unseen = Unseen("was not asked")
    daemon: Daemon | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Namespaces:
    """User namespaces: what a process of this user met when it made one, and what the kernel's settings say."""

    obstacle: str
    """Empty where all went well."""
    settings: Mapping[str, int]
    """By sysctl's name; those that this kernel has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """What the kernel has for models."""

    cgroup2: bool
    namespaces: Namespaces | Unseen
    ephemeral: tuple[int, int]
    """First and last port that the kernel hands out to outgoing connections."""
    first_unprivileged: int
    reserved: tuple[tuple[int, int], ...] = ()
    """Ranges of ports that it leaves alone all the same."""
    killers: tuple[str, ...] = ()
    """Programs that run and kill others when memory is short."""


@dataclass(frozen=True, slots=True)
class Node:
    """A device node of a GPU."""

    path: str
    usable: bool
    """This process may read and write it."""
    group: str = ""
    """The group that may, if one may."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpus:
    """GPUs as a server finds them."""

    count: int | None
    """None: there are some that cannot be counted."""
    nodes: tuple[Node, ...] = ()
    nvidia_driver: bool = False
    """NVIDIA's kernel module is loaded."""
    nvidia_cards: int = 0
    """NVIDIA's on the PCI bus, with or without a driver."""
    groups: frozenset[str] = frozenset()
    """Those that the user database gives the user; a running session may lack the newest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """Our files."""

    present: bool
    """~/.cortex is there."""
    open: tuple[Path, ...] = ()
    """What others than the owner may read, write or enter."""
    not_ours: tuple[Path, ...] = ()
    """What belongs to another user."""
    link_to_theirs: Path | None = None
    """~/.cortex, where it is a link to a folder of another user's."""
    odd: tuple[Path, ...] = ()
    """What is neither a regular file nor a folder where one of ours should be."""
    obstacles: tuple[Path, ...] = ()
    """What lies in the place of a unit's file or drop-in and would hold systemd up, or does."""
    set_aside: tuple[Path, ...] = ()
    """Damaged databases that cortexd kept."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What `systemd-analyze verify` said of our units: its lines about them."""

    units: int
    complaints: tuple[str, ...] = ()
    foreign: frozenset[str] = frozenset()
    """Units whose file cortexd did not write, or cannot read: a link, garbage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A backend and its program."""

    name: str
    executable: str = ""
    version: str = ""
    obstacle: str = ""
    """Why it did not say its version."""
    problem: str = ""
    """Why its file cannot be used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Everything."""

    user: str
    session: Session | Unseen
    lingers: bool | Unseen
    kernel: Kernel | Unseen
    gpus: Gpus | Unseen
    files: Files | Unseen
    rooms: tuple[Folder, ...] | Unseen
    """~/.cortex, then the caches."""
    verified: Verified | Unseen
    journal: str | Unseen | None
    """Why the user cannot read it, with the remedy behind a semicolon; None where they can."""
    programs: tuple[Program, ...] | Unseen
    places: Places = field(repr=False)
