from tests.guards import GUARDS, ROOT


def test_every_guard_stands_where_it_would_be_taken_out() -> None:
    assert [guard for file, guard, *_ in GUARDS if guard not in (ROOT / file).read_text()] == []
