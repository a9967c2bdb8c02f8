import pytest

from tests import reliability


def test_the_tables_are_those_of_the_runs_that_were_kept() -> None:
    page = reliability.PAGE.read_text()
    assert reliability.drawn(page) == page


def test_whoever_asks_what_it_does_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["reliability", "--help"])
    monkeypatch.setattr(reliability, "drawn", None)
    with pytest.raises(SystemExit) as end:
        reliability.main()
    assert end.value.code == 0
