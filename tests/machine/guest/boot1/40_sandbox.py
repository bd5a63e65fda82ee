"""What the running model's process can reach, read from the kernel and tried from its own namespaces."""

from pathlib import Path

from machine import HOME, RUNTIME, check, inside, mount_options, process, properties, user

pid = properties("cortex-tiny.service")["MainPID"]
status = process(pid)
check("NoNewPrivs", status["NoNewPrivs"], "1")
check("Seccomp", status["Seccomp"], "2")
check("CapEff", int(status["CapEff"], 16), 0)
for namespace in "user", "mnt":
    own, first = (Path(f"/proc/{number}/ns/{namespace}").readlink() for number in (pid, 1))
    check(f"{namespace} namespace is its own", own != first, True)

for path in "/", "/usr", "/boot", "/etc", str(HOME), "/sys/fs/cgroup", "/proc/sys":
    check(f"{path} is read-only", "ro" in mount_options(pid, path), True)
check("home cannot be written", inside(pid, "touch", f"{HOME}/x").returncode, 1)
check("model can be read", inside(pid, "head", "-c", "4", f"{HOME}/tiny.gguf").stdout, "GGUF")

user("touch", "/tmp/outside", "/var/tmp/outside")
for folder in "/tmp", "/var/tmp":
    check(f"{folder} is private", inside(pid, "ls", folder).stdout, "")
    check(f"{folder} can be written", inside(pid, "mktemp", f"--tmpdir={folder}").returncode, 0)
user("rm", "/tmp/outside", "/var/tmp/outside")

seen = inside(pid, "find", str(RUNTIME), "-mindepth", "1", "-printf", "%P\n").stdout.split()
# What cortexd tells the waiter of this model, and of no other, is there to be read.
ours = [path for path in seen if not path.startswith("cortexd")]
check("runtime folder", sorted(ours), ["systemd", "systemd/notify"])
check("hints of this model alone", len([path for path in seen if path.count("/") == 2]) <= 1, True)
check("the system's bus is the machine's", user("busctl", "--system", "list").returncode, 0)
check("no system's bus", inside(pid, "busctl", "--system", "list").returncode, 1)
check("names are still found", inside(pid, "getent", "passwd", "root").returncode, 0)
check("no terminals", inside(pid, "ls", "/dev/pts").stdout, "")
check("no user manager", inside(pid, "systemd-run", "--user", "true").returncode, 1)
check("~/.cortex is inaccessible", inside(pid, "ls", f"{HOME}/.cortex").stdout, "")
