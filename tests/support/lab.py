"""Where things are, and what is fetched before the tests enter their private manager."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
LLAMA_FOLDER = PROJECT / ".demo" / "llama"
LLAMA_SERVER = LLAMA_FOLDER / "llama-server"
TINY_GGUF = PROJECT / ".demo" / "tiny.gguf"


def prepare() -> None:
    """A real llama-server and a tiny model; a test that needs what could not be had says so itself."""
    subprocess.run([PROJECT / "scripts" / "get-llama-server", LLAMA_FOLDER], check=False)
    if not TINY_GGUF.exists():
        TINY_GGUF.parent.mkdir(exist_ok=True)
        subprocess.run([sys.executable, PROJECT / "scripts" / "tiny_gguf.py", TINY_GGUF], check=False)
