"""The programs of this machine that a unit names."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from cortexd.errors import CortexError
from cortexd.units.render import Tools
from cortexd.waiter import program  # here, so that Python keeps it compiled: in a unit it can write nothing


def find_tools(version: str) -> Tools:
    """The programs that units name, for a manager of this version ("252.39-1~deb12u2"). Raises CortexError where this machine lacks one."""
    found = {name: shutil.which(name, path="/usr/bin:/bin:/usr/local/bin") for name in ("env", "mkdir")}
    for name, path in found.items():
        if path is None:
            raise CortexError(f"this machine has no {name!r} program in /usr/bin; install coreutils")
    # The interpreter itself: a virtual environment's link may be in a folder that the unit does not see.
    python = os.path.realpath(sys.executable)
    waiter = Path(program.__file__).resolve().with_name("__main__.py")
    return Tools(python, str(waiter), str(found["env"]), str(found["mkdir"]), _release(version))


def _release(version: str) -> int:
    number = re.match(r"\d+", version)
    return int(number[0]) if number else 0
