"""A real vLLM in the strict profile: nothing of it has to go, and it compiles and generates all the same."""

from __future__ import annotations

import json

from tests.vllm.conftest import Vllm
from tests.vllm.test_serving import Server


def test_it_serves_in_the_strict_profile(vllm: Vllm) -> None:
    vllm.register("strict", "--security", "strict")
    try:
        found = vllm.start("strict")
        assert (found["State"], found["Warnings"]) == ("ready", []), vllm.journal("strict")[-5000:]
        (table,) = vllm.json("security", "strict")
        effects = {row["directive"]: row["effect"] for row in table["directives"]}
        assert set(effects.values()) <= {"in force", "moot", "off"}
        # What compiles at run time does not live with it: the profile leaves it out.
        assert {name for name, effect in effects.items() if effect == "off"} == {
            "MemoryDenyWriteExecute",
            "PrivateDevices",
        }
        question = json.dumps({"prompt": "abc", "max_tokens": 4, "ignore_eos": True, "model": "strict"})
        status, answer = Server(found["URL"], "").ask("/v1/completions", question, key=False)
        assert status == 200 and json.loads(answer)["usage"]["completion_tokens"] == 4
    finally:
        vllm.run("unregister", "--force", "strict")
