"""The power goes while a model is registered, changed, started or given a secret, at several moments: what was confirmed to
the client is there after the boot, what was not is there as a whole or not at all.

One cut a boot: each looks at what the one before left, and asks for the next. The client's notes are kept outside of the
machine, which forgets.
"""

import hashlib
import json
import os
import re
import sqlite3
import time
from collections import Counter
from copy import deepcopy
from typing import Any

from machine import HOME, HOST, check, ctl, cut_power, daemon, need, properties, report, until, user

MOMENTS = (0.03, 0.15, 0.4, 0.7, "the answer")
"""As parts of the time that the whole usually takes."""
CASES = ("register", "register with a key", "set", "set a secret", "start")
PLAN = [(case, moment) for case in CASES for moment in MOMENTS]
CHANGES = ("set", "set a secret")
"""Of the model that runs; the others have each a new one."""
MEMORY = 700  # MiB
NOTES = HOST / "notes"
UNITS = HOME / ".config/systemd/user"
ROOT = "/org/cortexlinux/Cortex1"
World = dict[str, dict[str, Any]]


def note(**what: Any) -> None:
    """Write down what the client knows, through to the host's disk."""
    file = os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_SYNC)
    os.write(file, (json.dumps(what) + "\n").encode())
    os.close(file)


def notes() -> list[dict[str, Any]]:
    return [json.loads(line) for line in NOTES.read_text().splitlines()] if NOTES.exists() else []


def shown() -> dict[str, dict[str, Any]]:
    """What cortexd says of each model."""
    done = user("cortexctl", "show", "*", "--json", quiet=True)
    return {model["Name"]: model for model in json.loads(done.stdout or "[]")}


def world() -> World:
    """Which models there are, and of each what this is about."""
    return {
        name: {
            "memory": model["Settings"]["memory"] >> 20,
            "enabled": model["UnitFileState"] == "enabled",
            "secrets": model["Secrets"],
        }
        for name, model in shown().items()
    }


def changed(before: World, case: str, name: str, memory: int) -> World:
    """What there is when it was done."""
    after = deepcopy(before)
    if case.startswith("register"):
        after[name] = {"memory": memory, "enabled": False, "secrets": ["LLAMA_API_KEY"] if case != "register" else []}
    elif case == "set":
        after[name]["memory"] = memory
    elif case == "set a secret":
        after[name]["secrets"] = sorted({*after[name]["secrets"], secret(memory)})
    else:
        after[name]["enabled"] = True
    return after


def secret(memory: int) -> str:
    """Another one for each time."""
    return f"SECRET_{memory}"


def call(path: str, interface: str, member: str, *words: str) -> str:
    """A method of cortexd's, without what a client in Python takes to begin; its answer."""
    address = ("org.cortexlinux.Cortex1", path, f"org.cortexlinux.Cortex1.{interface}", member)
    done = user("busctl", "--user", "call", *address, *words)
    if done.returncode != 0:
        need(f"{member} succeeds", done.stderr, "")
    return done.stdout


def ask(case: str, name: str, memory: int, *, cut: bool = False) -> float:
    """Do it; seconds until all of it was done. Notes the answer that confirms it; `cut`: that is the moment."""
    began = time.monotonic()
    if case.startswith("register"):
        given = {
            "path": f"{HOME}/tiny.gguf", "backend": "llamacpp", "exec": f"{HOME}/llama/llama-server", "gpus": "none",
            "port": "auto", "memory": f"{memory}M",
        }  # fmt: skip
        words = [word for key, value in given.items() for word in (key, "s", value)]
        options = ["1", "api_key", "s", "auto"] if case != "register" else ["0"]
        call(ROOT, "Manager", "Register", "sa{sv}a{sv}", name, str(len(given)), *words, *options)
    elif case == "set":
        call(f"{ROOT}/model/{name}", "Model", "Set", "a{sv}a{sv}", "1", "memory", "s", f"{memory}M", "0")
    elif case == "set a secret":
        value = [str(byte) for byte in b"a value" * 99]
        call(f"{ROOT}/model/{name}", "Model", "SetSecret", "saya{sv}", secret(memory), str(len(value)), *value, "0")
    else:
        job = call(f"{ROOT}/model/{name}", "Model", "Start", "a{sv}", "1", "enable", "b", "true")
    note(confirmed=name)
    if cut:
        cut_power(0)
    if case == "start":
        call(job.split('"')[1], "Job", "Wait", "a{sv}", "0")
    return time.monotonic() - began


def practise(case: str) -> float:
    """How long it takes."""
    if case in CHANGES:
        return ask(case, "tiny", MEMORY)
    seconds = ask("register" if case == "start" else case, "practice", MEMORY)
    if case == "start":
        seconds = ask("start", "practice", MEMORY)
    need("practice is over", user("cortexctl", "unregister", "--force", "practice").returncode, 0)
    return seconds


def units_half_written() -> list[str]:
    """Unit files whose text is not the one that their first line has the hash of."""
    wrong = [path.name for path in UNITS.glob(".cortex*")]
    for path in UNITS.glob("cortex*.service"):
        head, _, body = path.read_text().partition("\n")
        digest = re.search(r"sha256 ([0-9a-f]{64})", head)
        if not digest or digest[1] != hashlib.sha256(body.encode()).hexdigest():
            wrong.append(path.name)
    return wrong


def database() -> tuple[list[str], int]:
    """SQLite's word on it, and how many intents are unfinished."""
    with sqlite3.connect(f"file:{HOME}/.cortex/models.db?mode=ro", uri=True) as base:
        said = [row[0] for row in base.execute("PRAGMA integrity_check")]
        return said, base.execute("SELECT count(*) FROM intents").fetchone()[0]


def look(title: str, before: World, asked: dict[str, Any], confirmed: bool) -> World:
    """Compare the machine with what the client knows; what there is."""
    done = changed(before, asked["case"], asked["name"], asked["memory"])
    need(f"{title}: cortexd is there", until(lambda: daemon() != "0"), True)
    # The next cortexd finishes what the one before had begun; then this is what there is.
    check(f"{title}: the database", until(database, (["ok"], 0), seconds=60), (["ok"], 0))
    there = world()
    allowed = [done] if confirmed else [before, done]
    check(title, there, there if there in allowed else allowed[-1])
    aside = [path.name for path in (HOME / ".cortex").glob("models.db.damaged*")]
    check(f"{title}: nothing was set aside", aside, [])
    check(f"{title}: units are whole", units_half_written(), [])
    check(f"{title}: one for each model", {path.name for path in UNITS.glob("cortex-*.service")},
          {f"cortex-{name}.service" for name in there})  # fmt: skip

    def state() -> dict[str, str]:
        return {name: model["State"] for name, model in shown().items()}

    files = {path.parent.name for path in (HOME / ".cortex/secrets").glob("*/environment")}
    check(f"{title}: secrets are those of models", files, {name for name, model in there.items() if model["secrets"]})
    states = {name: "ready" if model["enabled"] else "stopped" for name, model in there.items()}
    check(f"{title}: what is enabled is ready", until(state, states), states)
    limits = {name: int(properties(f"cortex-{name}.service")["MemoryMax"]) >> 20 for name in there}
    check(f"{title}: systemd has its memory", limits, {name: model["memory"] for name, model in there.items()})
    if asked["case"] == "start" and confirmed:
        check(f"{title}: the audit log has it", "start" in ctl("events", asked["name"], "--kind", "start"), True)
    return there


known = notes()
number = len([entry for entry in known if "asked" in entry])
if number:
    last = max(place for place, entry in enumerate(known) if "asked" in entry)
    entry = known[last]
    confirmed = any("confirmed" in later for later in known[last:])
    title = f"{entry['asked']['case']} cut at {entry['moment']}{', confirmed' if confirmed else ''}"
    there = look(title, entry["world"], entry["asked"], confirmed)
    is_done = there != entry["world"]
    note(outcome="confirmed" if confirmed else "done, without a word" if is_done else "not done")
    if entry["asked"]["case"] == "start":  # so that not ever more models start at boot
        need("it is removed", user("cortexctl", "unregister", "--force", entry["asked"]["name"]).returncode, 0)
else:
    need("tiny is ready, and will be", user("cortexctl", "start", "--enable", "tiny").returncode, 0)

if number < len(PLAN):
    case, moment = PLAN[number]
    name = "tiny" if case in CHANGES else f"model{number}"
    if case == "start":
        ask("register", name, MEMORY)
    usual = next((entry["seconds"] for entry in known if entry.get("usual") == case), None) or practise(case)
    note(usual=case, seconds=usual)
    asked = {"case": case, "name": name, "memory": 1100 + number if case in CHANGES else MEMORY}
    note(asked=asked, moment=moment, world=world())
    if moment != "the answer":
        cut_power(usual * moment)
    ask(**asked, cut=moment == "the answer")
    need("the power is cut", until(lambda: False), True)
else:
    outcomes = Counter(entry["outcome"] for entry in notes() if "outcome" in entry)
    report(f"# {number} power cuts: {', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())}")
    need("every model is removed", user("cortexctl", "unregister", "--force", "model*").returncode, 0)
