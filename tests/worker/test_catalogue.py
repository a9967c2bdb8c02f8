import pytest

from api_client.wire.errors import BadSettings, UnknownModel
from api_client.wire.messages import Kind
from worker.catalogue import BUILT_IN, Catalogue, Entry

SIX = {
    "ViT-L-14/openai": (768, 224, 1.2),
    "ViT-L-14/laion2b_s32b_b82k": (768, 224, 1.2),
    "ViT-B-32/openai": (512, 224, 0.6),
    "ViT-B-32/laion2b_s34b_b79k": (512, 224, 0.6),
    "ViT-H-14/laion2b_s32b_b79k": (1024, 224, 2.4),
    "ViT-L-14@336px/openai": (768, 336, 1.8),
}


@pytest.fixture(scope="module")
def catalogue():
    return Catalogue.read(BUILT_IN)


@pytest.mark.parametrize("model_id", SIX)
def test_the_six_models_have_their_figures(catalogue, model_id):
    entry = catalogue[model_id]
    assert (entry.dimension, entry.input_size, entry.memory_gb) == SIX[model_id]
    told = entry.public()
    assert told.name
    assert told.description
    assert told.recommended_use
    assert told.performance_rating


def test_an_alias_finds_the_entry_it_stands_for(catalogue):
    assert catalogue["ViT-H-14/laion2b"].id == "ViT-H-14/laion2b_s32b_b79k"


def test_a_name_of_hugging_face_is_an_alias_of_the_same_weights(catalogue):
    name = "openai/clip-vit-large-patch14"
    assert catalogue[name].id == "ViT-L-14/openai"
    assert name in catalogue["ViT-L-14/openai"].public().aliases
    known = Catalogue([], describe=lambda id: Entry(id) if id == "ViT-B-16/openai" else None)
    assert known["openai/clip-vit-base-patch16"].id == "ViT-B-16/openai"


def test_somebodys_own_model_may_have_a_name_of_hugging_face():
    name = "openai/clip-vit-base-patch32"
    own = [Entry("ViT-B-32/openai"), Entry("mine", aliases=(name,))]
    assert Catalogue(own)[name].id == "mine"
    assert Catalogue([*own, Entry(name)])[name].id == name


def test_an_unknown_model_is_told_its_nearest_neighbours(catalogue):
    with pytest.raises(UnknownModel, match="ViT-B-32/openai"):
        catalogue["VIT-B32/openai"]


def test_a_family_may_know_models_that_no_file_lists(catalogue):
    known = Catalogue(catalogue, describe=lambda name: Entry(name) if name == "x/y" else None)
    assert known["x/y"].id == "x/y"
    assert known["shapes/demo"].dimension == 64
    with pytest.raises(UnknownModel):
        known["x/z"]


def test_what_is_described_is_described_once_and_what_is_not_here_may_come():
    asked = []

    def describe(name):
        asked.append(name)
        return Entry(name) if len(asked) > 1 else None

    known = Catalogue([], describe=describe)
    with pytest.raises(UnknownModel):
        known["x/y"]
    assert known["x/y"] is known["x/y"]
    assert asked == ["x/y", "x/y"]


def test_a_persons_own_file_adds_and_overrides(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(
        '["mine/best"]\nbackend = "fake"\nkinds = ["text"]\naliases = ["best"]\n'
        'checkpoint = "weights/mine.safetensors"\narchitecture = "mine.json"\n'
        '["shapes/demo"]\nbackend = "fake"\ndimension = 3\n'
    )
    both = Catalogue.read(BUILT_IN, own)
    mine = both["best"]
    assert mine.kinds == (Kind.TEXT,)
    assert not mine.is_vision
    assert mine.checkpoint == tmp_path / "weights/mine.safetensors"
    assert mine.architecture == str(tmp_path / "mine.json")
    assert both["shapes/demo"].dimension == 3


def test_an_id_counts_for_more_than_an_alias_and_a_later_alias_than_an_earlier():
    theirs = Entry("theirs/one", aliases=("one", "best"))
    known = Catalogue([theirs, Entry("one"), Entry("two", aliases=("best",))])
    assert (known["one"].id, known["best"].id) == ("one", "two")
    told = {entry.id: entry.public().aliases for entry in known}  # clients look there
    assert told == {"theirs/one": (), "one": (), "two": ("best",)}


@pytest.mark.parametrize(
    "text",
    [
        "[",
        '["a/b"]\nsise = 3',
        '["a/b"]\nkinds = ["sound"]',
        '["a/b"]\nkinds = []',
        '["a/b"]\nmemory_gb = inf',
        '["a/b"]\nmemory_gb = nan',
        '["a/b"]\nmemory_gb = -1',
        '["a/b"]\ndimension = -1',
        '["a/b"]\ncontext_chars = -1',
        'a = "not a table"',
        None,
    ],
)
def test_a_catalogue_file_that_cannot_be_used_is_one_line(tmp_path, text):
    file = tmp_path / "own.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadSettings) as raised:
        Catalogue.read(file)
    assert len(str(raised.value).splitlines()) == 1
    assert str(file) in str(raised.value)
