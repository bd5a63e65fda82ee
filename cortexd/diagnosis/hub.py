"""Whether the Hugging Face hub would let a server have its model (huggingface_hub's hf_api.py: model_info, auth_check).

Nobody is asked about a model that is in the cache already, and no answer is no finding: servers work offline, too.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import aiohttp

ENDPOINT = "https://huggingface.co"
_MAX_ANSWER = 1 << 20  # bytes
_MAX_TOKEN = 4096
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:[\w.-]+)?")


class Access(Enum):
    """What the hub says of a repository."""

    OPEN = "open"
    UNKNOWN = "unknown"
    """There is no such repository, or it is private and the token, if there is one, does not open it."""
    GATED = "gated"
    """Its files are given to those who have agreed to its terms."""
    REFUSED = "refused"
    """It is gated, and the token has no access to it."""
    NO_ANSWER = "no answer"


@dataclass(frozen=True, slots=True)
class Hub:
    """A reference to a model on the hub, and what is known of it."""

    repository: str
    cached: bool = False
    offline: bool = False
    """HF_HUB_OFFLINE forbids to ask."""
    has_token: bool = False
    access: Access = Access.NO_ANSWER


def repository(path: str) -> str | None:
    """The hub's repository that a reference names, if it is one."""
    match = _REPOSITORY.fullmatch(path)
    return match[1] if match else None


def is_cached(name: str, environment: Mapping[str, str]) -> bool:
    """Whether a server with this environment finds the repository on disk; blocking.

    The hub's library keeps `models--ORG--NAME/snapshots/REVISION`, llama.cpp files that begin with ORG_NAME_, or
    manifest=ORG=NAME=.
    """
    label = "models--" + name.replace("/", "--")
    for variable in ("HF_HUB_CACHE", "LLAMA_CACHE"):
        if folder := environment.get(variable):
            if any(Path(folder, label, "snapshots").glob("*/*")):
                return True
            begins = (name.replace("/", "_") + "_", f"manifest={name.replace('/', '=')}=")
            if variable == "LLAMA_CACHE" and _has(Path(folder), begins):
                return True
    return False


def _has(folder: Path, begins: tuple[str, ...]) -> bool:
    try:
        return any(path.name.startswith(begins) for path in folder.iterdir())
    except OSError:
        return False


def saved_token(variables: Mapping[str, str], environment: Mapping[str, str], home: Path) -> str:
    """The token that the hub's library would take: a variable, else the file that `hf auth login` leaves; blocking."""
    if value := variables.get("HF_TOKEN") or variables.get("HUGGING_FACE_HUB_TOKEN"):
        return value.strip()
    default = Path(environment.get("HF_HOME") or variables.get("HF_HOME") or home / ".cache" / "huggingface") / "token"
    try:
        with Path(variables.get("HF_TOKEN_PATH") or default).open("rb") as file:
            return file.read(_MAX_TOKEN).decode("ascii", "ignore").strip()
    except OSError:
        return ""


async def ask(name: str, endpoint: str, token: str, seconds: float) -> Access:
    """Ask the hub for a repository, within `seconds` in all. Never raises but when cancelled."""
    url = f"{endpoint.rstrip('/')}/api/models/{name}"
    headers = {"Authorization": f"Bearer {token}"} if token and token.isprintable() else {}
    await asyncio.to_thread(
        importlib.import_module, "aiohttp"
    )  # 15 MB, and a third of a daemon's start, for the few who ask
    import aiohttp

    limits = aiohttp.ClientTimeout(total=seconds)
    try:
        async with aiohttp.ClientSession(
            timeout=limits, trust_env=True, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            status, body = await _get(session, url, headers)
            if status in (401, 403, 404):
                return Access.UNKNOWN
            answer = json.loads(body) if status == 200 else None
            if not isinstance(answer, dict):
                return Access.NO_ANSWER
            if not answer.get("gated"):
                return Access.OPEN
            if not headers:
                return Access.GATED
            status, _ = await _get(session, url + "/auth-check", headers)
            return Access.REFUSED if status in (401, 403) else Access.OPEN
    except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError, OSError):
        return Access.NO_ANSWER


async def _get(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """Status and the beginning of the body. A redirect is followed to the same host alone: a repository may have been
    renamed, and a token is nobody else's business."""
    for _ in range(3):
        async with session.get(url, headers=headers, allow_redirects=False) as answer:
            if answer.status in (301, 302, 303, 307, 308) and (location := answer.headers.get("Location")):
                there = answer.url.join(type(answer.url)(location))
                if there.origin() != answer.url.origin():
                    return 0, b""
                url = str(there)
                continue
            body = b""
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > _MAX_ANSWER:
                    return 0, b""
            return answer.status, body
    return 0, b""
