"""cortexd that says how many tasks it has: SIGUSR1 writes the number to the file that CORTEX_TASKS names."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from cortexd import app


def count(*_: object) -> None:
    path = Path(os.environ["CORTEX_TASKS"])
    new = path.with_suffix(".new")
    new.write_text(str(len(asyncio.all_tasks())))
    new.rename(path)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, count)
    app.main()
