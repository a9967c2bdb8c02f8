from tests import reliability


def test_the_tables_are_those_of_the_runs_that_were_kept() -> None:
    page = reliability.PAGE.read_text()
    assert reliability.drawn(page) == page
