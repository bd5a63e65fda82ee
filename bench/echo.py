"""`python echo.py LIBRARY LISTING`: what a D-Bus library's own object layer gives: an echo, a list, a signal.

LISTING is a JSON file of the models to answer with: an array of objects, each value a pair of signature and value.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from pathlib import Path
from typing import Any

NAME, PATH = "org.example.Echo", "/org/example/Echo"


def service(library: Any, listing: list[dict[str, Any]]) -> Any:
    """The object, made by the library's decorators, which read D-Bus signatures from annotations."""

    def echo(self: Any, text: Any) -> Any:
        return text

    def models(self: Any) -> Any:
        return listing

    def notify(self: Any) -> Any:
        self.Notified()

    def notified(self: Any) -> Any:
        return ["m0000", "ready"]

    echo.__annotations__ = {"text": "s", "return": "s"}
    models.__annotations__ = {"return": "aa{sv}"}
    notify.__annotations__ = {}
    notified.__annotations__ = {"return": "ss"}
    members = {
        "Echo": library.service.method(name="Echo")(echo),
        "ListModels": library.service.method(name="ListModels")(models),
        "Notify": library.service.method(name="Notify")(notify),
        "Notified": library.service.signal(name="Notified")(notified),
    }
    return type("EchoInterface", (library.service.ServiceInterface,), members)(NAME)


async def serve(name: str, found: list[dict[str, Any]]) -> None:
    """Until killed."""
    library = importlib.import_module(name)
    importlib.import_module(name + ".aio")
    importlib.import_module(name + ".service")
    models = [{key: library.Variant(kind, value) for key, (kind, value) in model.items()} for model in found]
    bus = await library.aio.MessageBus().connect()
    bus.export(PATH, service(library, models))
    await bus.request_name(NAME)
    await bus.wait_for_disconnect()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())))
