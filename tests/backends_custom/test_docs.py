"""docs/backends.md says what the form is: every key, every placeholder, every condition, and an example that works."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from cortexd.backends import template
from cortexd.backends.form import Form, parse
from tests.support.lab import PROJECT

PAGE = (PROJECT / "docs" / "backends.md").read_text()


def first_cells(heading: str) -> list[str]:
    """What stands in the first column of a section's table."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)


def test_every_key_is_described() -> None:
    inner = {
        "engine_path": "engine",
        "engine_body": "engine",
        "activity_path": "activity",
        "activity_counters": "activity",
    }
    assert set(first_cells("Keys")) == {inner.get(field.name, field.name) for field in fields(Form)}


def test_every_placeholder_and_condition_is_described() -> None:
    for name, (meaning, _) in template.PLACEHOLDERS.items():
        assert f"| `{{{name}}}` | {meaning} |" in PAGE
    for name, (meaning, _) in template.CONDITIONS.items():
        assert f"| `{name}` | {meaning} |" in PAGE
    assert len(first_cells("Placeholders")) == len(template.PLACEHOLDERS)
    assert len(first_cells("Conditions")) == len(template.CONDITIONS)


def test_the_example_is_a_backend_file() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    form = parse(example, Path("infinity.toml"))
    assert (form.executables, form.endpoint) == (("infinity_emb",), "/health")
