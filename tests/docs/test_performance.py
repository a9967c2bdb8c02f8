from benchmarks import kept, page


def test_the_page_is_that_of_the_runs_that_were_kept() -> None:
    """`python -m benchmarks report` draws it anew."""
    assert page.drawn(kept.newest()) == page.PAGE.read_text()
