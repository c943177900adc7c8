from __future__ import annotations

from pathlib import Path

from tandem_cli import tandem


def left(folder: Path) -> list[str]:
    """Return every file and folder that a demo left, folders that only group others aside."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "models")


def test_a_demo_with_a_wrong_setting_leaves_nothing_behind(tmp_path: Path) -> None:
    done = tandem("demo", "--out", tmp_path, "--set", "strategy.nmae=x")
    assert done.code != 0
    assert "nmae" in done.err
    assert left(tmp_path) == []


def test_a_demo_whose_training_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    done = tandem("demo", "--out", tmp_path, "--set", "training.nosuch=1")
    assert done.code == 1
    assert "training ended with code" in done.err
    assert left(tmp_path) == []
