"""The tables requested against effective: as docs/security.md has them for this release, and on a machine that refuses namespaces."""

import json
import sys
from pathlib import Path

from machine import CLONE, HOME, check, contains, ctl, need, report, run, until, user

sys.dont_write_bytecode = True
sys.path.append(str(CLONE / "scripts"))
from security_table import tables  # noqa: E402 - the path comes first

release = dict(line.partition("=")[::2] for line in Path("/etc/os-release").read_text().splitlines())
column = f"Debian {release['VERSION_ID'].strip(chr(34))}"
settings = (
    f"--path {HOME}/tiny.gguf --backend llamacpp --exec {HOME}/llama/llama-server --gpus none --memory 1G --port auto"
)
need("register", user("cortexctl", "register", "proved", *settings.split()).returncode, 0)
# A folder of the user's outside of home, as for models on another disk: ProtectSystem=strict is tried there.
Path("/srv/models").mkdir(exist_ok=True)
run("chown", f"{HOME.stat().st_uid}", "/srv/models")


def rows(status: int, *options: str) -> dict[str, list[str]]:
    """Requested, effect and why of each directive."""
    done = user("cortexctl", "security", "proved", "--json", *options)
    check(f"security's status, {' '.join(options) or 'kept'}", done.returncode, status)
    return {
        row["directive"]: [row["requested"], row["effect"], row["why"]]
        for row in json.loads(done.stdout)[0]["directives"]
    }


def effects(status: int, *options: str) -> dict[str, str]:
    """The effect of each directive."""
    return {directive: effect for directive, (_, effect, _) in rows(status, *options).items()}


for profile in "default", "strict":
    user("cortexctl", "set", "proved", f"security={profile}")
    said = rows(0, "--probe")
    report(f"TABLE {column}, {profile}: {json.dumps(said)}")  # what scripts/security_table.py makes docs/security.md of
    documented = tables((CLONE / "docs/security.md").read_text()).get(profile, {}).get(column, {})
    check(
        f"as the documentation has it, {profile}",
        {name: cells[:2] for name, cells in documented.items()},
        {name: cells[:2] for name, cells in said.items()},
    )
found = {directive: effect for directive, (_, effect, _) in said.items()}
check("a strict system is closed elsewhere, too", found["ProtectSystem"], "in force")
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
