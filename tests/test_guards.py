import pytest

from tests import guards
from tests.guards import GUARDS, ROOT


@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("-k", 2)])
def test_whoever_asks_what_it_does_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, word: str, code: int
) -> None:
    monkeypatch.setattr("sys.argv", ["guards", word])
    with pytest.raises(SystemExit) as end:
        guards.main()
    assert end.value.code == code


def test_every_guard_stands_where_it_would_be_taken_out() -> None:
    assert [guard for file, _, guard, *_ in GUARDS if guard not in (ROOT / file).read_text()] == []
