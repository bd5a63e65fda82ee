"""Stand-ins for servers that cannot be had here, as programs of their real names."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import zipapp
from dataclasses import dataclass
from pathlib import Path

_SERVERS = Path(__file__).parent / "servers"
_PACKAGE = "tests.support.servers"


@dataclass(frozen=True)
class StandIn:
    """An installed one."""

    program: Path

    def script(self, **directions: object) -> None:
        """What it has to do from its next start on; see the stand-in's own list."""
        self.program.with_suffix(".json").write_text(json.dumps(directions))


def install(program: Path, module: str) -> StandIn:
    """Make the module, with what it imports of its own folder, an executable of this interpreter's."""
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, *_PACKAGE.split("."))
        package.mkdir(parents=True)
        for above in (package, package.parent, package.parent.parent):
            (above / "__init__.py").touch()
        for source in _SERVERS.glob(f"{module}*.py"):
            shutil.copy(source, package)
        # -I: nothing of the caller's environment gets in.
        interpreter = f"{os.path.realpath(sys.executable)} -I"
        zipapp.create_archive(folder, program, interpreter, f"{_PACKAGE}.{module}:main")
    return StandIn(program)
