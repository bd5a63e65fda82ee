"""What cortexd tells its own service manager (sd_notify(3), sd_watchdog_enabled(3))."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> None:
    """Send states such as READY=1; nothing happens where nobody listens."""
    target = os.environ.get("NOTIFY_SOCKET", "")
    if not target:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto("\n".join(lines).encode(), "\0" + target[1:] if target.startswith("@") else target)


def watchdog_interval() -> float | None:
    """Seconds within which the service manager wants to hear from us, or None."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(wanted) / 1e6 if wanted.isdigit() and int(wanted) and for_us else None
