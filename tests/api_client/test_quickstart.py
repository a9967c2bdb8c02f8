"""What the quick start does to the folder it is given; the whole of it runs in tests/docs."""

from pathlib import Path

from api_client.quickstart import run


def test_pictures_that_were_there_are_kept_and_not_searched(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "PICTURES", 3)
    own = tmp_path / "holiday.png"
    own.write_bytes(b"mine")
    first, again = run._drawn(tmp_path), run._drawn(tmp_path)
    assert own.read_bytes() == b"mine"
    assert own not in first.files
    assert first == again
