import random

import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.backends.recipes import Recipe
from worker.backends.words import LONG, merged
from worker.catalogue import Entry

THEIRS = open_clip.SimpleTokenizer()
PARTS = [part.removesuffix("</w>") for part in THEIRS.encoder]
LETTERS = st.sampled_from([*"aehnrst", *PARTS[:256], *random.Random(7).sample(PARTS, 200)])


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    recipe = Recipe.of(Entry("clip", architecture="ViT-B-32"))
    return recipe.tokenizer(tmp_path_factory.mktemp("none"))


@settings(max_examples=50, deadline=None)
@given(letters=st.lists(LETTERS, min_size=2, max_size=80))
def test_a_long_word_has_the_parts_that_open_clip_gives_it(letters):
    word = "".join(letters)
    parts = merged([*word[:-1], f"{word[-1]}</w>"], THEIRS.bpe_ranks)
    assert " ".join(parts) == THEIRS.bpe(word)


@pytest.mark.parametrize("part", ["7", "don't ", "😀🚀", "ab", "a<end_of_text>", " naïve!\n"])
@pytest.mark.parametrize("times", [1, 500])
@pytest.mark.parametrize("length", [77, 78])
def test_a_row_is_the_one_that_open_clip_makes(ours, part, times, length):
    row = ours([part * times], context_length=length)
    assert row.tolist() == THEIRS([part * times], context_length=length).tolist()


def test_no_more_of_a_text_is_taken_apart_than_is_read(ours):
    assert len(ours.encode("7 " * 5000)) == 78


def test_words_without_end_are_not_remembered(ours):
    word = "".join(random.Random(7).choices("abcdefgh", k=2 * LONG))
    ours([word, "hello"])
    assert "hello" in ours.cache
    assert word not in ours.cache


def test_a_tokenizer_that_chooses_among_the_tokens_gets_them_all(tmp_path):
    recipe = Recipe.of(Entry("clip", architecture="ViT-B-32"))
    recipe.model["text_cfg"]["tokenizer_kwargs"] = {"reduction_mask": "simple"}
    assert len(recipe.tokenizer(tmp_path).encode("7 " * 500)) == 500
