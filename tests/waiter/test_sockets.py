"""Who listens, and in which control group."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortexd.waiter import sockets
from cortexd.waiter.sockets import Listener, answering, answers_to, listeners, own_group
from tests.support.units import free_port, properties, systemctl
from tests.support.wait import until
from tests.waiter.servers import listening


@pytest.mark.parametrize(
    ("probe", "address", "reached"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "::", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "::ffff:0.0.0.0", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::1", False),
        ("::1", "::1", True),
        ("::1", "::", True),
        ("::1", "0.0.0.0", False),
        ("::1", "127.0.0.1", False),
    ],
)
def test_which_sockets_a_probe_reaches(probe: str, address: str, reached: bool) -> None:
    socket_ = Listener(address, 8000, 0, 1)
    assert answers_to(probe, [socket_]) == ([socket_] if reached else [])


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["0.0.0.0"], ["::1"], ["::"], ["::ffff:127.0.0.1"], ["127.0.0.1", "127.0.0.2", "::1"]]
)
def test_netlink_and_proc_find_the_same(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with listening(*addresses, port=port) as found:
        by_netlink = listeners(port)

        def unavailable(family: int, wanted: int) -> Iterator[Listener]:
            raise PermissionError

        monkeypatch.setattr(sockets, "_diag", unavailable)
        by_proc = listeners(port)
        expected = {(s.getsockname()[0], port, os.getuid(), os.fstat(s.fileno()).st_ino) for s in found}

        def key(found: list[Listener]) -> set[tuple[str, int, int, int]]:
            return {(sock.address, sock.port, sock.uid, sock.inode) for sock in found}

        assert key(by_netlink) == key(by_proc) == expected
        assert {sock.cgroup for sock in by_netlink} == {own_cgroup()}
        assert {sock.cgroup for sock in by_proc} == {0}


def test_what_does_not_listen_is_not_found() -> None:
    port = free_port()
    with listening("127.0.0.1", port=port) as (server,), socket.create_connection(("127.0.0.1", port)):
        accepted, _ = server.accept()
        assert [sock.inode for sock in listeners(port)] == [os.fstat(server.fileno()).st_ino]
        accepted.close()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert listeners(bound.getsockname()[1]) == []


def test_many_sockets() -> None:
    """More than one datagram of the kernel's answer holds."""
    with listening(*["127.0.0.1"] * 400) as found:
        last = found[-1].getsockname()[1]
        assert [sock.inode for sock in listeners(last)] == [os.fstat(found[-1].fileno()).st_ino]


def own_cgroup() -> int:
    group = own_group()
    assert group is not None
    return group.stat().st_ino


def test_own_control_group() -> None:
    (path,) = (line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    assert own_cgroup() == Path(f"/sys/fs/cgroup{path}").stat().st_ino


def test_own_control_group_of_a_name_with_colons() -> None:
    unit, program = (
        "cortex-waiter::test.service",
        "from cortexd.waiter.sockets import own_group; print(own_group().stat().st_ino)",
    )
    command = ["systemd-run", "--user", "--quiet", "--wait", "--pipe", f"--unit={unit}", "--property=PrivateUsers=yes",
               "--property=ProtectControlGroups=yes", f"--working-directory={Path(sockets.__file__).parents[2]}"]  # fmt: skip
    inside = f"{program}; import os; print(os.stat('/sys/fs/cgroup' + open('/proc/self/cgroup').read().split('0::')[1].strip()).st_ino)"
    printed = subprocess.run([*command, sys.executable, "-c", inside], capture_output=True, text=True, check=True)
    ours, real = printed.stdout.split()
    assert ours == real != "0"


def test_who_listens_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    assert answering(str(path), 0) == []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert answering(str(path), 0) == []  # it does not listen yet
        server.listen()
        assert answering(str(path), 0) == [Listener(str(path), 0, os.getuid(), 0, own_cgroup(), os.getpid())]
    assert answering(str(path), 0) == []
    unit = f"stranger-at-a-path-{os.getpid()}.service"
    program = (
        f"import socket, time; s = socket.socket(socket.AF_UNIX); s.bind({str(path)!r}); s.listen(); time.sleep(600)"
    )
    path.unlink()
    subprocess.run(["systemd-run", "--user", "--quiet", f"--unit={unit}", sys.executable, "-c", program], check=True)
    try:
        (stranger,) = until(lambda: answering(str(path), 0), "the stranger's socket")
        assert stranger.cgroup not in (0, own_cgroup()) and stranger.pid == int(properties(unit, "MainPID")["MainPID"])
    finally:
        systemctl("stop", unit)


def test_a_port_among_many_is_found_and_no_other() -> None:
    """The kernel is asked for this one alone."""
    with listening(*["127.0.0.1"] * 50) as found:
        ports = sorted(sock.getsockname()[1] for sock in found)
        for port in (ports[0], ports[-1], ports[25]):
            assert [sock.port for sock in sockets._diag(socket.AF_INET, port)] == [port]
    assert [*sockets._diag(socket.AF_INET, 0)] == [*sockets._diag(socket.AF_INET6, 65535)] == []
