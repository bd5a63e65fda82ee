"""Where a model's server is met, and with which key: only a socket of its own unit gets to see that."""

from __future__ import annotations

import asyncio
import functools
import logging
from pathlib import Path

from cortexd.errors import CortexError
from cortexd.health.probe import Server
from cortexd.registered import Model
from cortexd.secrets import Secrets
from cortexd.systemd.cgroup import mount_point
from cortexd.systemd.protocol import Systemd
from cortexd.waiter import http
from cortexd.waiter.sockets import answering

log = logging.getLogger(__name__)


class Door:
    """One for all models."""

    def __init__(self, secrets: Secrets, systemd: Systemd) -> None:
        self._secrets, self._systemd = secrets, systemd
        self._local: bool | None = None
        """Whether secrets can be read without waiting: a thread's turn costs as much as the rest of a probe."""

    async def server(self, model: Model) -> Server:
        """The server of a model that runs. Its key is read anew each time, and not kept."""
        variable = model.plan.api_key
        given = next((a.partition("=")[2] for a in model.spec.env if a.partition("=")[0] == variable), "")
        if not given and variable not in model.definition.secrets.names:
            return Server(model.url, model.endpoint, model.questions)
        group = self._systemd.cached(model.unit).control_group
        if self._local is None:
            self._local = await asyncio.to_thread(self._secrets.on_local_disk)
        look = functools.partial(self._look, model, variable, group, given)
        token, stranger = look() if self._local else await asyncio.to_thread(look)
        return Server(model.url, model.endpoint, model.questions, token, stranger)

    def _look(self, model: Model, variable: str, group: str, given: str) -> tuple[str, str]:
        """Its key, or why nothing may be asked. A secret wins over what is `given` by the setting env, as it does in the unit."""
        own, stranger = who_answers(model.url, group)
        if not own:
            return "", stranger
        try:
            return self._secrets.value(model.name, variable) or given, ""
        except CortexError as e:
            log.warning("%s: is asked without its key: %s", model.name, e)
            return "", ""


def who_answers(url: str, group: str) -> tuple[bool, str]:
    """Whether all who answer at `url` are known to be processes of this control group; where they are not, or nobody can
    tell, a sentence. Neither where nobody listens, and on a kernel that does not tell the control groups of sockets
    (before Linux 5.8): then it may be asked, but without a key."""
    root = _hierarchy()
    try:
        server = http.server_of(url)
        sockets = answering(server.address, server.port)
    except (OSError, ValueError):
        return False, ""
    if root is None:
        return False, ""
    try:
        own = (root / group.lstrip("/")).stat().st_ino if group.strip("/") else 0
    except OSError:
        own = 0
    for socket in sockets:
        if own and socket.cgroup and socket.cgroup != own:
            return False, f"{server.place} is held by a process outside its unit (user {socket.uid})"
    if not own and any(socket.cgroup for socket in sockets):
        return False, f"it cannot be told who listens on {server.place}, since its unit has no control group"
    return bool(sockets) and all(socket.cgroup == own != 0 for socket in sockets), ""


@functools.cache
def _hierarchy() -> Path | None:
    """Where control groups are; that does not change while a process lives."""
    try:
        return mount_point(Path("/proc/self/mountinfo").read_text())
    except OSError:
        return None
