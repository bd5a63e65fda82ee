"""cortexd under the unit that is installed, with all that it takes from the daemon and from what that runs."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.cortex import Cortex
from tests.support.units import free_port, properties, systemctl

UNIT = "cortexd.service"
PROGRAM = """#!{python} -IS
import ctypes, mmap, os, sys
mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)  # as what compiles at run time does
ctypes.CDLL(None).swapoff(b"/nowhere")  # in no @system-service, as what else a program may try
print("version 1")
"""


@pytest.fixture(scope="module")
def cortex() -> Iterator[Cortex]:
    """The command line, and the daemon as systemd starts it from the text that is installed."""
    unit = Path.home() / ".local" / "share" / "systemd" / "user" / UNIT
    unit.parent.mkdir(parents=True, exist_ok=True)
    text = (lab.PROJECT / "systemd" / UNIT).read_text()
    unit.write_text(text.replace("@bindir@", str(Path(sys.executable).parent)))
    systemctl("daemon-reload")
    systemctl("start", UNIT)
    client = Cortex()
    yield client
    client.run("unregister", "--force", "*", check=False)
    systemctl("stop", UNIT)
    unit.unlink()
    systemctl("daemon-reload")


def test_it_names_who_holds_a_port(cortex: Cortex) -> None:
    """It reads the holder's entries in /proc, as it could not in a user namespace."""
    port = free_port()
    cortex.register_tiny("m", "--port", str(port))
    listen = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print(1, flush=True); time.sleep(99)"
    holder = subprocess.Popen([sys.executable, "-c", listen, str(port)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
    comm = Path(f"/proc/{holder.pid}/comm").read_text().strip()
    try:
        assert f"process {holder.pid} ({comm})" in cortex.fails("start", "m")
    finally:
        holder.kill()
        holder.communicate()
    cortex.run("start", "m")  # llama-server --version runs in there, too
    assert cortex.properties("m")["State"] == "ready"


def test_programs_that_it_asks_for_their_version_run_as_they_do_outside(cortex: Cortex) -> None:
    program = Path.home() / "programs" / "llama-server"
    program.parent.mkdir(exist_ok=True)
    program.write_text(PROGRAM.format(python=Path(sys.executable).resolve()))
    program.chmod(0o755)
    cortex.run("register", "jit", "--path", str(lab.TINY_GGUF), "--backend", "llamacpp", "--exec", str(program), "--gpus", "none",
               "--memory", "1G", "--port", str(free_port()))  # fmt: skip
    found = cortex.json("check", "jit")
    assert [
        row for row in found[0]["findings"] if "version" in str(row) or str(program) in str(row.get("problem"))
    ] == []


def test_it_listens_on_nothing(cortex: Cortex) -> None:
    """No socket of its own accepts anything: it is met on the bus alone."""
    pid = int(properties(UNIT, "MainPID")["MainPID"])
    inodes = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        rows = [row.split() for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]]
        assert [row for row in rows if f"socket:[{row[9]}]" in inodes and row[3] in ("0A", "07")] == []
    rows = [row.split() for row in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    listening = [row for row in rows if f"socket:[{row[6]}]" in inodes and int(row[3], 16) & 0x10000]
    assert listening == []


def test_its_limits_hold_and_leave_room(cortex: Cortex) -> None:
    found = properties(UNIT, "MemoryHigh", "MemoryMax", "TasksMax", "OOMPolicy", "MainPID")
    assert (found["MemoryHigh"], found["MemoryMax"], found["TasksMax"]) == (str(1 << 30), str(2 << 30), "512")
    assert found["OOMPolicy"] == "continue"
    status = dict(line.split(":", 1) for line in Path(f"/proc/{found['MainPID']}/status").read_text().splitlines())
    assert int(status["VmHWM"].split()[0]) < 100 << 10 and int(status["Threads"]) < 50


def test_what_it_is_held_to(cortex: Cortex) -> None:
    """As the kernel has it: no new privileges, a filter of system calls, and no dump of its memory."""
    pid = properties(UNIT, "MainPID")["MainPID"]
    (core,) = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max core")]
    assert core.split()[4:6] == ["0", "0"]
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    with socket.socket(socket.AF_UNIX) as sock:
        assert sock.fileno() >= 0  # that this process is not held to it
