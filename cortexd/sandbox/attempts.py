"""Run inside a sandbox, and once outside of any: tries each thing that one should prevent.

Standard library only, run as a script with an empty environment. Says how each attempt ended as the unit's status,
`NAME:ERRNO` each, where 0 is success. Nothing is changed by an attempt that succeeds, and no file is left behind, also when
it is killed: files have no names, system calls ask for what does not exist.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

if not __package__:
    # As the waiter does it (cortexd/waiter/__main__.py): nothing that lies beside cortexd comes before the standard library.
    _parent = type(sys)("cortexd")
    _parent.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]  # noqa: PTH100, PTH120
    sys.modules["cortexd"] = _parent

from cortexd.sandbox.inside import tell, writing

_libc = ctypes.CDLL(None, use_errno=True)
_PR_GET_NO_NEW_PRIVS, _PTRACE_TRACEME, _PER_LINUX32 = 39, 0, 8
_NEW_USERS, _NEW_MOUNTS, _NEW_CONTROL_GROUPS = 0x10000000, 0x00020000, 0x02000000  # CLONE_NEW…
_PRIVATE = 0x4000 | 1 << 18  # MS_REC | MS_PRIVATE
_READ_WRITE = 32 | 4096  # MS_REMOUNT | MS_BIND
_DETACH = 2  # MNT_DETACH
_SYSLOG_SIZE_BUFFER = 10
_SYSTEM = ("/usr", "/etc", "/boot", "/opt", "/srv", "/var/lib", "/var/local", "/run/lock")
_TUNABLES = ("/proc/sys/kernel/printk", "/proc/sys/vm/swappiness", "/sys/kernel/mm/transparent_hugepage/enabled")

Where = dict[str, str]
"""What the daemon says of the machine as it sees it: folders by their names, and what a file is (`identity`); of the model
its file mode mask."""


def identity(path: str) -> str:
    """Which folder a path leads to: what another one lies over is another."""
    found = Path(path).stat()
    return f"{found.st_dev}:{found.st_ino}"


def _reached(attempt: Callable[[], object], *refused: int) -> None:
    """Like success is one of these errors, which is what who may do it gets."""
    try:
        attempt()
    except OSError as e:
        if e.errno not in refused:
            raise


def _call(function: str, *arguments: object) -> None:
    """A function of the C library; raises OSError."""
    ctypes.set_errno(0)
    if getattr(_libc, function)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), function)


def _in_child(function: Callable[[], object]) -> None:
    """In a process of its own, since it would change this one; raises OSError."""
    child = os.fork()
    if not child:
        number = 0
        try:
            function()
        except OSError as e:
            number = e.errno or errno.EIO
        finally:
            os._exit(number)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise OSError(status if status > 0 else errno.EPERM, "")


def _any(attempt: Callable[[str], object], paths: tuple[str, ...]) -> None:
    """One success is enough."""
    error = OSError(errno.ENOENT, "")
    for path in paths:
        try:
            attempt(path)
            return
        except OSError as e:
            error = e
    raise error


def _open_to_write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))


def _seen(where: Where, name: str) -> None:
    if identity(where[name]) != where.get(f"{name}-is", ""):
        raise OSError(errno.ENOENT, "another folder lies over it")


def _terminals(where: Where) -> None:
    _seen(where, "terminals")
    os.scandir(where["terminals"]).close()


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(2)
        sock.connect(path)


def _gain_privileges(where: Where) -> None:
    _refuse(_libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)


def _setuid_file(where: Where) -> None:
    descriptor = os.memfd_create("attempt", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o4700)
    finally:
        os.close(descriptor)


def _control_group(where: Where) -> None:
    own = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
    _open_to_write(f"/sys/fs/cgroup{own}/cgroup.procs")


def _lift_limits(where: Where) -> None:
    """By a mount of its own. `nsdelegate` guards the group that is the root of a process's namespace, and no other: one in a
    group below may write the limits of that."""

    def outer() -> None:
        _call("unshare", _NEW_USERS | _NEW_MOUNTS | _NEW_CONTROL_GROUPS)
        _call("mount", b"none", b"/tmp", b"cgroup2", 0, None)
        below = Path("/tmp/cortexd-attempt")
        below.mkdir()
        try:
            _in_child(lambda: inner(below))
        finally:
            below.rmdir()

    def inner(below: Path) -> None:
        (below / "cgroup.procs").write_text("0")
        _call("unshare", _NEW_CONTROL_GROUPS)
        limit = Path("/tmp/cgroup.max.depth")  # one that there is with every controller
        limit.write_text(limit.read_text())

    _in_child(outer)


def _write_and_execute(where: Where) -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def _other_family(where: Where) -> None:
    # Without privileges the kernel's code of that family refuses, but it is reached.
    _reached(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(), errno.EPERM)


def _host_name(where: Where) -> None:
    _reached(lambda: _call("sethostname", None, ctypes.c_size_t(-1)), errno.EINVAL)


def _unload_module(where: Where) -> None:
    _reached(lambda: _call("delete_module", b"cortexd-none-of-that-name", os.O_NONBLOCK), errno.ENOENT)


def _realtime(where: Where) -> None:
    _in_child(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))


def _open_files(where: Where) -> None:
    mask = int(where["umask"], 8)
    _refuse(os.umask(0o077) & mask == mask)


def _user_namespace(where: Where) -> None:
    _refuse(str(Path("/proc/self/ns/user").readlink()) != where["user-namespace-is"])


def _refuse(prevented: bool) -> None:
    if prevented:
        raise OSError(errno.EPERM, "")


ATTEMPTS: dict[str, Callable[[Where], object]] = {
    "user-namespace": _user_namespace,
    "gain-privileges": _gain_privileges,
    "write-system": lambda where: _any(writing, _SYSTEM),
    "write-elsewhere": lambda where: writing(where["elsewhere"]),
    "write-home": lambda where: writing(where["home"]),
    "see-home": lambda where: _seen(where, "home"),
    "see-tmp": lambda where: _seen(where, "tmp"),
    "see-var-tmp": lambda where: _seen(where, "var-tmp"),
    "see-shared-memory": lambda where: _seen(where, "shared-memory"),
    "see-devices": lambda where: _seen(where, "devices"),
    "realtime": _realtime,
    "setuid-file": _setuid_file,
    "tunables": lambda where: _any(_open_to_write, _TUNABLES),
    "unload-module": _unload_module,
    "see-modules": lambda where: [*Path("/usr/lib/modules").iterdir()],
    "control-group": _control_group,
    "lift-limits": _lift_limits,
    "user-bus": lambda where: _connect(f"{where['runtime']}/bus"),
    "user-manager": lambda where: _connect(f"{where['runtime']}/systemd/private"),
    "system-bus": lambda where: _connect("/run/dbus/system_bus_socket"),
    "see-run": lambda where: _seen(where, "run"),
    "see-terminals": _terminals,
    "see-console": lambda where: _seen(where, "console"),
    "see-data": lambda where: [*Path(where["data"]).iterdir()],
    "see-secrets": lambda where: [*Path(f"{where['data']}/secrets").iterdir()],
    "see-units": lambda where: [*Path(where["units"]).iterdir()],
    "namespaces": lambda where: _in_child(lambda: _call("unshare", _NEW_USERS)),
    "personality": lambda where: _in_child(lambda: _call("personality", ctypes.c_ulong(_PER_LINUX32))),
    "write-and-execute": _write_and_execute,
    "other-family": _other_family,
    "trace": lambda where: _in_child(lambda: _call("ptrace", _PTRACE_TRACEME, 0, None, None)),
    "kernel-log": lambda where: _call("klogctl", _SYSLOG_SIZE_BUFFER, None, 0),
    # Asks alone, by the call that sets as well.
    "clock": lambda where: _call("adjtimex", ctypes.create_string_buffer(512)),
    "host-name": _host_name,
    "open-files": _open_files,
}
"""By name; each raises OSError where it is prevented."""


def _ended(attempt: Callable[[Where], object], where: Where) -> int:
    try:
        attempt(where)
    except OSError as e:
        return e.errno or errno.EIO
    return 0


def _as_root(names: list[str], where: Where) -> set[str]:
    """Those that succeed for who is root of namespaces of its own, and takes away what lies over things where the kernel lets
    it."""
    read_end, write_end = os.pipe()

    def uncovered() -> None:
        _call("unshare", _NEW_USERS | _NEW_MOUNTS)
        _call("mount", None, b"/", None, _PRIVATE, None)
        points = [line.split()[4].encode() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in reversed(points):
            _libc.umount2(point, _DETACH)
            _libc.mount(None, point, None, _READ_WRITE, None)
        found = [name for name in names if not _ended(ATTEMPTS[name], where)]
        os.write(write_end, " ".join(found).encode())

    with suppress(OSError):
        _in_child(uncovered)
    os.close(write_end)
    with os.fdopen(read_end) as file:
        return {*file.read().split()}


def main() -> int:
    """Try all, those that fail once more in namespaces of their own, and tell."""
    where = json.loads(sys.argv[1])
    ends = {name: _ended(attempt, where) for name, attempt in ATTEMPTS.items()}
    ends |= dict.fromkeys(_as_root([name for name, number in ends.items() if number], where), 0)
    tell(" ".join(f"{name}:{number}" for name, number in ends.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
