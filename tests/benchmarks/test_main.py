"""The command that runs benchmarks."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import kept


def test_what_measured_nothing_is_told_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kept, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--keep"])
    assert command.main() == 0
    assert "nothing measured: run it with --device cuda" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_without_git_a_result_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "FOLDER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert json.loads(kept.keep('{"name": "wire"}').read_text())["commit"] == "unknown"
