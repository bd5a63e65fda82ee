"""The one mapping from a model's name to its unit, its object path and its job; injective both ways."""

from __future__ import annotations

import re

from cortexd.errors import InvalidName

BUS_NAME = "org.cortexlinux.Cortex1"
ROOT_PATH = "/org/cortexlinux/Cortex1"
MODEL_PREFIX = ROOT_PATH + "/model/"
JOB_PREFIX = ROOT_PATH + "/job/"
MANAGER_INTERFACE = BUS_NAME + ".Manager"
MODEL_INTERFACE = BUS_NAME + ".Model"
JOB_INTERFACE = BUS_NAME + ".Job"

MAX_MODELS = 4096
"""That can be registered; one more is Busy."""

SLICE = "cortex.slice"
FOLDER_TEMPLATE = "cortexd-mkdir@.service"
"""The unit that makes a folder before a model starts; a model's own sandbox may not."""
UNIT_PATTERN = "cortex-*.service"
CHECK_PREFIX = "cortexd-check-"
"""How the units begin that try a sandbox for one look; they are no models'."""
_UNIT_PREFIX = "cortex-"
_UNIT_SUFFIX = ".service"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_MAX_LENGTH = 64
# systemd reads "a.service.d" as the drop-in folder of "a.service"; a name that ends like a unit's is a trap for people.
_UNIT_SUFFIXES = (".service", ".socket", ".slice", ".target", ".timer", ".scope", ".mount", ".path", ".d")


def check_name(name: str) -> str:
    """Return `name` if a model may have it, else raise InvalidName."""
    if not _NAME.fullmatch(name):
        shown = repr(name if len(name) <= _MAX_LENGTH else name[:20] + "…")
        raise InvalidName(f"name {shown}: use letters, digits and . _ : - only, and begin with a letter or a digit")
    if len(name) > _MAX_LENGTH:
        raise InvalidName(f"name {name[:20]!r}…: has {len(name)} characters, at most {_MAX_LENGTH} are possible")
    if name.endswith("-"):
        raise InvalidName(f"name {name!r}: must not end with -, since its drop-in folder would apply to every {name}…")
    if name.endswith(_UNIT_SUFFIXES):
        raise InvalidName(f"name {name!r}: must not end like a unit's name; leave the suffix out")
    return name


def unit_name(name: str) -> str:
    """The systemd unit of a model."""
    return f"{_UNIT_PREFIX}{name}{_UNIT_SUFFIX}"


def model_name(unit: str) -> str | None:
    """The model that a unit belongs to, or None where the unit's name is none that we would make."""
    if not (unit.startswith(_UNIT_PREFIX) and unit.endswith(_UNIT_SUFFIX)):
        return None
    name = unit[len(_UNIT_PREFIX) : -len(_UNIT_SUFFIX)]
    try:
        return check_name(name)
    except InvalidName:
        return None


def hint_folder(name: str) -> str:
    """A folder of a model's own below the runtime folder (%t), while its unit has processes. Without the colon, which
    RuntimeDirectory= reads as the beginning of a link's name."""
    return f"cortexd/progress/{path_label(name)}"


def path_label(text: str) -> str:
    """systemd's bus_label_escape: what is no ASCII letter or digit, and a digit in front, becomes _xx."""
    return "".join(
        c if c.isascii() and c.isalnum() and not (i == 0 and c.isdigit()) else f"_{ord(c):02x}"
        for i, c in enumerate(text)
    )


def from_path_label(label: str) -> str:
    """The reverse of `path_label`."""
    return re.sub("_([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), label)


def model_path(name: str) -> str:
    """The object path of a model."""
    return MODEL_PREFIX + path_label(name)


def model_of_path(path: str) -> str:
    """The model of an object path, whether there is one or not."""
    return from_path_label(path.removeprefix(MODEL_PREFIX))


def job_path(job_id: int) -> str:
    """The object path of a job."""
    return f"{JOB_PREFIX}{job_id}"
