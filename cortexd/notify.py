"""What cortexd tells its own service manager (sd_notify(3), sd_watchdog_enabled(3))."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


def notify(*lines: str) -> None:
    """Send states such as READY=1; where nobody listens we go on without."""
    target = os.environ.get("NOTIFY_SOCKET", "")
    if not target:
        return
    address = "\0" + target[1:] if target.startswith("@") else target
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto("\n".join(lines).encode(), address)
    except OSError as e:
        log.warning("the service manager is not told %s: %s", " ".join(lines), e)


def watchdog_interval() -> float | None:
    """Seconds within which the service manager wants to hear from us, or None."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(wanted) / 1e6 if wanted.isdigit() and int(wanted) and for_us else None
