"""Has systemd read unit files again when cortexd starts, though it may refuse that for now: then cortexd starts all the same."""

from __future__ import annotations

import asyncio
import logging
from itertools import chain, repeat

from cortexd.errors import CortexError
from cortexd.recovery import PAUSES
from cortexd.systemd.protocol import Systemd

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a start waits for it."""


class Reread:
    """Of one manager."""

    def __init__(self, systemd: Systemd) -> None:
        self._systemd = systemd
        self.warning = ""
        """Says, as long as it lasts, that systemd knows some units as they were."""

    async def now(self) -> None:
        """Ask once, within PATIENCE. systemd refuses where it was asked too often (ReloadLimitBurst= in
        systemd-system.conf(5), 253 and later), where /run is full, and where it is not there."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._systemd.reload()
        except (CortexError, TimeoutError) as e:
            why = str(e) or f"systemd has not read its unit files again in {PATIENCE:g} s"
            self.warning = f"{why}; units are as it read them last, and it is asked again until it does"

    async def at_last(self) -> None:
        """Ask as often as it takes, where it refused."""
        for pause in chain(PAUSES, repeat(PAUSES[-1])):
            if not self.warning:
                return
            await asyncio.sleep(pause)
            try:
                await self._systemd.reload()
            except CortexError as e:
                log.debug("asked again: %s", e)
                continue
            self.warning = ""
            log.info("systemd has read its unit files again")
