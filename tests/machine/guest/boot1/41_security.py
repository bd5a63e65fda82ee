"""The table requested against effective: as docs/security.md has it for this release, and on a machine that refuses namespaces."""

import json
from pathlib import Path

from machine import CLONE, HOME, check, contains, ctl, need, report, run, until, user

release = dict(line.partition("=")[::2] for line in Path("/etc/os-release").read_text().splitlines())
column = f"Debian {release['VERSION_ID'].strip(chr(34))}"
settings = (
    f"--path {HOME}/tiny.gguf --backend llamacpp --exec {HOME}/llama/llama-server --gpus none --memory 1G --port auto"
)
need("register", user("cortexctl", "register", "proved", *settings.split(), "--security", "strict").returncode, 0)


def effects(status: int, *options: str) -> dict[str, str]:
    """The effect of each directive."""
    done = user("cortexctl", "security", "proved", "--json", *options)
    check(f"security's status, {' '.join(options) or 'kept'}", done.returncode, status)
    return {row["directive"]: row["effect"] for row in json.loads(done.stdout)[0]["directives"]}


found = effects(0, "--probe")
report(f"TABLE {column}: {json.dumps(found)}")  # what scripts/security_table.py makes docs/security.md of
document = (CLONE / "docs/security.md").read_text().splitlines()
lines = [line.strip("| ").split(" | ") for line in document if line.startswith("|")]
head = next((cells for cells in lines if column in cells), [])
said = {cells[0].strip("`"): cells[head.index(column)] for cells in lines if head and len(cells) == len(head)}
check("as the documentation has it", {name: said.get(name) for name in found}, found)
check("it is kept", effects(0), found)
check("nothing is left", user("sh", "-c", 'ls "$XDG_RUNTIME_DIR/systemd/user"').stdout.count("cortexd-check"), 0)
need("the strict one starts", user("cortexctl", "start", "proved").returncode, 0)
user("cortexctl", "stop", "proved")

# A machine that refuses user namespaces: the unit says what it can, and who asks for all of it gets nothing.
before = Path("/proc/sys/user/max_user_namespaces").read_text().strip()
run("sysctl", "-w", "user.max_user_namespaces=0")
refused = effects(1, "--probe")
check("what needs namespaces is left out", refused["PrivateTmp"], "not in force")
check("what needs none is in force", refused["RestrictSUIDSGID"], "in force")
contains(
    "status warns of it", ctl("status", "proved"), "are left out: this machine gives a user's services no namespaces"
)
check("its unit has no PrivateUsers", "PrivateUsers" in ctl("cat", "proved"), False)
check("it starts without", user("cortexctl", "start", "proved").returncode, 0)
user("cortexctl", "stop", "proved")
user("cortexctl", "set", "proved", "sandbox_required=yes")
contains("required, it does not start", ctl("start", "proved"), "sandbox_required=yes: this machine gives")
check("nor does systemd start it", user("systemctl", "--user", "start", "cortex-proved.service").returncode != 0, True)
user("cortexctl", "set", "proved", "sandbox_required=")
run("sysctl", "-w", f"user.max_user_namespaces={before}")
check("and all is in force again", effects(0, "--probe"), found)
check("without a warning", until(lambda: "are left out" in ctl("status", "proved"), False), False)
user("cortexctl", "unregister", "--force", "proved")
