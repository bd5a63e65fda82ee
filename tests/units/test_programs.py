"""Programs are looked at once in one reading of all models, and anew in the next."""

from __future__ import annotations

from pathlib import Path

from cortexd.units.programs import at_one_look, program_folders


def test_one_look_lasts_no_longer_than_its_reading(tmp_path: Path) -> None:
    home, link = tmp_path / "home", tmp_path / "server"
    for version in ("1", "2"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "server").write_bytes(b"\x7fELF")
    link.symlink_to(tmp_path / "1" / "bin" / "server")
    with at_one_look():
        before = program_folders(link, home, ())
        link.unlink()
        link.symlink_to(tmp_path / "2" / "bin" / "server")
        assert program_folders(link, home, ()) == before
        assert tmp_path / "1" in before
    after = program_folders(link, home, ())
    assert tmp_path / "2" in after and tmp_path / "1" not in after
