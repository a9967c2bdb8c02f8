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


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--quick --keep", "a quick run is not kept"),
        ("--device tpu", "'tpu' is neither cpu nor cuda:N"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: str, told: str
) -> None:
    monkeypatch.setattr(command, "_run", None)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "wire", *options.split()])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert told in capsys.readouterr().err


def test_without_git_a_result_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "FOLDER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert json.loads(kept.keep('{"name": "wire"}').read_text())["commit"] == "unknown"
