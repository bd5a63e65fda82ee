"""Makes a user namespace as systemd does for a sandbox, and mounts in it; run as a program of its own.

Prints the step that fails with its reason, and nothing where all goes well. Making one proves little: Ubuntu's AppArmor
lets everybody make one, and forbids whatever it is good for.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_NEWNS, _NEWUSER = 0x00020000, 0x10000000  # unshare(2)
_REC, _SLAVE = 1 << 14, 1 << 19  # mount(2)


def main() -> None:
    """Each step as PrivateUsers= with ProtectSystem= takes it."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    _check("making one", libc.unshare(_NEWUSER))
    for file, text in (("uid_map", f"{uid} {uid} 1"), ("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1")):
        try:
            Path(f"/proc/self/{file}").write_text(text)
        except OSError as e:
            _end(f"writing its {file}", e.errno or 0)
    _check("making a mount namespace in it", libc.unshare(_NEWNS))
    _check("mounting in it", libc.mount(None, b"/", None, _REC | _SLAVE, None))


def _check(step: str, result: int) -> None:
    if result != 0:
        _end(step, ctypes.get_errno())


def _end(step: str, number: int) -> None:
    print(f"{step}: {os.strerror(number)}")
    sys.exit(1)


if __name__ == "__main__":
    main()
