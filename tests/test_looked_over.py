"""What clients see, without asking for it, of files that somebody changed under a daemon that runs."""

from __future__ import annotations

from pathlib import Path

from tests.support.cortex import Cortex


def test_list_and_doctor_tell_of_an_edited_unit_and_of_one_without_a_model(cortex: Cortex) -> None:
    cortex.register_tiny("edited")
    cortex.register_tiny("whole")
    folder = Path.home() / ".config" / "systemd" / "user"
    unit, ghost = folder / "cortex-edited.service", folder / "cortex-ghost.service"
    unit.write_text(unit.read_text() + "Nice=5\n")
    ghost.write_bytes((folder / "cortex-whole.service").read_bytes())
    try:
        listed = cortex.run("list")
        assert "cortex-edited.service is not what cortexd wrote" in listed.stdout
        assert "cortex-whole.service" not in listed.stdout + listed.stderr
        assert "cortex-ghost.service was written by cortexd, but no model 'ghost' is registered" in listed.stderr
        assert "cortex-ghost.service was written by cortexd" in cortex.run("doctor", check=False).stdout
    finally:
        ghost.unlink()
    unit.write_text(unit.read_text().replace("Nice=5", "Nice=6"))
    told = cortex.run("doctor", check=False).stdout
    cortex.run("repair", "edited", "--yes")
    assert (
        "there are warnings about edited: " in told and "ghost" not in told and "ghost" not in cortex.run("list").stderr
    )
