"""An older cortexd is installed where there was none, upgraded while its models serve, and uninstalled: what is left is the user's."""

import sqlite3
from pathlib import Path

from machine import (
    CLONE,
    HOME,
    HOST,
    check,
    ctl,
    events,
    files_at_home,
    lives,
    need,
    properties,
    requests,
    runtime_files,
    told,
    until,
    user,
)

DATABASE = HOME / ".cortex/models.db"
old = HOME / "previous"


def schema() -> int:
    with sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True) as base:
        number: int = base.execute("PRAGMA user_version").fetchone()[0]
        return number


user("rm", "-rf", str(HOME / ".cortex"))
user("cp", "-a", str(HOST / "previous"), str(old))
before, runtime = files_at_home(), runtime_files()
need("the older one is installed", user("make", "install", folder=old).returncode, 0)
settings = (
    f"--path {HOME}/tiny.gguf --backend llamacpp --exec {HOME}/llama/llama-server --gpus none --memory 900M --port auto"
)
need("register", user("cortexctl", "register", "served", *settings.split()).returncode, 0)
need("start", user("cortexctl", "start", "--enable", "served").returncode, 0)
user("cortexctl", "register", "idle", *settings.split())
run, version, asked = lives("served"), schema(), len(events("served"))
says = {name: told(name)["Settings"] for name in ("served", "idle")}

with requests(ctl("url", "served").strip()) as answers:
    need("upgrade", user("make", "install", folder=CLONE).returncode, 0)
    check("cortexd says", until(lambda: told("served").get("State"), "ready"), "ready")
    count = len(answers)
    check("the model answers after it", until(lambda: len(answers) > count), True)
check(f"all of {len(answers)} requests were answered", {status for status, _ in answers}, {200})
check("it is the same run", lives("served"), run)
migrated = schema()
check(f"the database was of schema {version} and is of {migrated}", migrated > version, True)
check("the copy of before is kept", DATABASE.with_name(f"models.db.v{version}").exists(), True)
for name, said in says.items():
    now = told(name)
    check(f"{name} has its settings", {key: now["Settings"][key] for key in said}, said)
    check(f"nothing is wrong with {name}", now["Warnings"], [])
check("the audit log goes on", len(events("served")) >= asked, True)
check("it is still enabled", properties("cortex-served.service")["UnitFileState"], "enabled")
check("it restarts", user("cortexctl", "restart", "served").returncode, 0)

check("uninstall", user("env", "REMOVE_MODELS=1", "make", "uninstall", folder=CLONE).returncode, 0)
left = {path for path in set(files_at_home()) - set(before) if old not in (HOME / path).parents}
check("at home, what it knew of models", sorted(path for path in left if path.split("/")[0] != ".cortex"), [])
check("nothing else is gone", sorted(set(before) - set(files_at_home())), [])
check("nothing in the runtime folder", sorted(set(runtime_files()) - set(runtime)), [])
given = {path.relative_to(HOST / "src") for path in (HOST / "src").rglob("*")}
check(
    "nothing in the clone",
    sorted(str(path) for path in {path.relative_to(CLONE) for path in CLONE.rglob("*")} - given),
    [],
)
check("nothing in /tmp", [str(path) for path in Path("/tmp").glob("*cortex*")], [])
