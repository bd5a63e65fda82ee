"""Asks a server, without any library."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any


class Client:
    """Of the server at one address."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, body: object = None, method: str | None = None, *, key: str = "") -> tuple[int, list[Any]]:
        """Status, 0 where nobody answers, and the JSON objects of the answer, or its text."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data=data, method=method)
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, _objects(answer.read())
        except urllib.error.HTTPError as e:
            return e.code, _objects(e.read())
        except OSError:
            return 0, []

    def loaded(self) -> list[str]:
        """What Ollama's /api/ps lists."""
        return [model["name"] for model in self.ask("/api/ps")[1][0]["models"]]


def _objects(text: bytes) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()] if text.startswith(b"{") else [text.decode()]
