from dataclasses import replace

import pytest

from api_client.wire.messages import Kind
from worker.backends.base import Tier
from worker.catalogue import Entry
from worker.choice import Candidate, Wish, ranked

CLIP = Candidate(Entry("clip"), size=100)
SHORT = Candidate(Entry("short", kinds=(Kind.TEXT,), context_chars=2000), size=50)
LONG = Candidate(
    Entry("long", kinds=(Kind.TEXT,), context_chars=30_000, multilingual=True), size=200
)
TOY = Candidate(Entry("toy", performance_rating="toy"), size=1)
ALL = (TOY, CLIP, SHORT, LONG)


def first(wish, candidates=ALL, *, current="nobody", budget_bytes=None):
    return ranked(wish, candidates, current=current, budget_bytes=budget_bytes)[0]


def text(content):
    return Wish.of((Kind.TEXT,), ["short", content])


def at(tier, candidate):
    return replace(candidate, tier=tier)


def test_a_picture_goes_to_a_model_that_sees():
    choices = ranked(Wish((Kind.IMAGE,)), ALL, current="nobody", budget_bytes=None)
    assert [choice.entry.id for choice in choices] == ["clip", "toy"]
    assert choices[0].why == "clip embeds images"


def test_what_a_text_will_follow_has_to_read_as_well_wherever_it_is():
    eyes = Candidate(Entry("eyes", kinds=(Kind.IMAGE,)), tier=Tier.DEVICE)
    assert first(Wish((Kind.IMAGE,)), (eyes, CLIP)).entry.id == "eyes"
    choice = first(Wish((Kind.IMAGE, Kind.TEXT)), (eyes, CLIP))
    assert choice.why == "clip embeds images and texts"


def test_a_model_on_the_device_goes_before_one_in_host_memory_before_one_on_disk():
    candidates = (at(None, CLIP), at(Tier.HOST, SHORT), at(Tier.DEVICE, LONG))
    found = ranked(text("a cat"), candidates, current="clip", budget_bytes=None)
    assert [choice.entry.id for choice in found] == ["long", "short", "clip"]
    assert found[0].why == "long is on the device"


def test_among_equals_the_current_model_answers():
    assert first(text("a cat"), current="short").why == "short is the current model"


def test_a_text_over_the_context_needs_a_longer_one_even_if_that_is_not_here():
    candidates = (at(Tier.DEVICE, CLIP), at(Tier.HOST, SHORT), LONG)
    assert first(text("x" * 301), candidates).entry.id == "short"
    assert first(text("x" * 2001), candidates).why == "long takes texts of 2001 characters"


def test_a_text_that_nobody_takes_whole_is_said_to_be_too_long():
    assert "comes nearest to texts of 9999 characters" in first(text("x" * 9999), (CLIP,)).why


@pytest.mark.parametrize("content", ["красный круг", "赤い丸", "दो कुत्ते", "赤い丸 12.34"])
def test_another_script_asks_for_many_languages(content):
    choice = first(text(content * 3), (at(Tier.DEVICE, CLIP), LONG))
    assert choice.why == "long knows other scripts than Latin"


@pytest.mark.parametrize("content", ["un café à Zürich", "123 🚀", ""])
def test_latin_letters_and_signs_do_not(content):
    assert first(text(content), (at(Tier.DEVICE, CLIP), LONG)).entry.id == "clip"


def test_a_model_over_the_budget_is_not_chosen():
    assert first(text("x" * 2001), budget_bytes=150).entry.id == "short"
    assert ranked(text("x"), (LONG,), current="long", budget_bytes=150) == []
