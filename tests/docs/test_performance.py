import pytest

from benchmarks import kept, page


def test_the_page_is_that_of_the_runs_that_were_kept() -> None:
    """`python -m benchmarks report` draws it anew."""
    assert page.drawn(kept.newest()) == page.PAGE.read_text()


@pytest.mark.parametrize(
    "section", page.PAGE.read_text().split("\n## ")[1:], ids=lambda it: it.partition("\n")[0]
)
def test_a_section_says_what_is_compared_before_its_figures(section: str) -> None:
    _, told, *_ = section.split("\n\n")
    assert not told.startswith("|")
