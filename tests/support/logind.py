"""A logind that answers as the real one does about lingering (org.freedesktop.login1(5))."""

from __future__ import annotations

import asyncio
import os

from cortexd.bus import Bus, Call, Variant


class FakeLogind:
    """The two objects that are asked for."""

    def __init__(self) -> None:
        self.lingers = False
        self.tracked = True
        self.refusal = ""
        self.asked: list[object] = []

    def answer(self, call: Call) -> bool:
        uid = os.getuid()
        if call.member == "GetUser" and not self.tracked:
            call.error("org.freedesktop.login1.NoSuchUser", f"User ID {uid} is not logged in or lingering")
        elif call.member == "GetUser" and call.body == [uid]:
            call.reply("o", [f"/org/freedesktop/login1/user/_{uid}"])
        elif call.member == "Get" and call.path.endswith(f"/_{uid}"):
            assert call.body == ["org.freedesktop.login1.User", "Linger"]
            call.reply("v", [Variant("b", self.lingers)])
        elif call.member == "SetUserLinger" and self.refusal:
            call.error("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", self.refusal)
        elif call.member == "SetUserLinger":
            self.asked.append(call.body)
            self.lingers = call.body[1]
            call.reply()
        else:
            return False
        return True

    async def serve(self, address: str) -> Bus:
        """Be org.freedesktop.login1 on a bus, for as long as the connection lasts."""
        bus = await Bus.connect(address)
        bus.serve(self.answer)
        assert await bus.request_name("org.freedesktop.login1")
        return bus


def process(address: str) -> None:
    """The same as a process of its own."""

    async def run() -> None:
        await (await FakeLogind().serve(address)).closed

    asyncio.run(run())
