"""Where a model's server is met, and with which key: only a socket of its own unit gets to see that."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from cortexd.errors import CortexError
from cortexd.health.probe import Server
from cortexd.registered import Model
from cortexd.secrets import Secrets
from cortexd.systemd.cgroup import mount_point
from cortexd.systemd.protocol import Systemd
from cortexd.waiter.sockets import answers_to, listeners

log = logging.getLogger(__name__)


class Door:
    """One for all models."""

    def __init__(self, secrets: Secrets, systemd: Systemd) -> None:
        self._secrets, self._systemd = secrets, systemd

    async def server(self, model: Model) -> Server:
        """The server of a model that runs. Its key is read anew each time, and not kept."""
        variable = model.plan.api_key
        if variable not in model.definition.secrets.names:
            return Server(model.url, model.endpoint, model.questions)
        group = self._systemd.cached(model.unit).control_group
        token, stranger = await asyncio.to_thread(self._look, model, variable, group)
        return Server(model.url, model.endpoint, model.questions, token, stranger)

    def _look(self, model: Model, variable: str, group: str) -> tuple[str, str]:
        if stranger := find_stranger(model.url, group):
            return "", stranger
        try:
            return self._secrets.value(model.name, variable) or "", ""
        except CortexError as e:
            log.warning("%s: is asked without its key: %s", model.name, e)
            return "", ""


def find_stranger(url: str, group: str) -> str:
    """A sentence if a socket of a process outside this control group answers at `url`; empty if none does, or where it
    cannot be told."""
    address, _, port = url.removeprefix("http://").rpartition(":")
    try:
        root = mount_point(Path("/proc/self/mountinfo").read_text())
        own = (root / group.lstrip("/")).stat().st_ino if root and group else 0
        for socket in answers_to(address.strip("[]"), listeners(int(port))):
            if own and socket.cgroup and socket.cgroup != own:
                return f"port {port} is held by a process outside its unit (user {socket.uid})"
    except (OSError, ValueError):
        return ""
    return ""
