"""The training learns, and the weights that are shipped are as good as their report says."""

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import open_clip
import pytest
import torch

from api_client.quickstart import shapes
from tools import shape_examples, train_shapes

REPORT = json.loads((train_shapes.DIRECTORY / "report.json").read_text())


def training(directory: Path) -> Iterator[float]:
    """The loss of each of four steps."""
    clip = train_shapes.build(directory, seed=1)
    batches = shape_examples.batches(
        clip.preprocess, clip.tokenize, seed=1, count=4, size=16, processes=0
    )
    return train_shapes.train(clip.model, batches, steps=4)


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return list(training(tmp_path_factory.mktemp("trained")))


def test_a_few_steps_reduce_the_loss(losses: list[float]) -> None:
    assert sum(losses[-2:]) < sum(losses[:2])


def test_the_same_seed_gives_the_same_training(losses: list[float], tmp_path: Path) -> None:
    assert list(islice(training(tmp_path), 2)) == losses[:2]


def test_what_is_saved_is_float16_and_loads_with_open_clip_alone(tmp_path: Path) -> None:
    clip = train_shapes.build(tmp_path, seed=1)
    train_shapes.save(clip.model, tmp_path)
    loaded = open_clip.create_model(f"local-dir:{tmp_path}")
    for name, trained in clip.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], trained.half().float()), name


def test_a_text_that_is_true_of_a_picture_is_not_held_against_it() -> None:
    logits = torch.tensor([[0.0, 50.0], [50.0, 0.0]])
    everything, own = torch.ones(2, 2, dtype=torch.bool), torch.eye(2, dtype=torch.bool)
    assert train_shapes.contrastive_loss(logits, everything) == 0
    assert train_shapes.contrastive_loss(logits, own) > 49


@pytest.mark.parametrize("caption", shapes.CAPTIONS[::17])
def test_a_phrase_allows_the_scene_that_it_was_made_for(caption: str) -> None:
    scene = shapes.SCENES[caption]
    dice = random.Random(caption)
    for text, allowed in (shape_examples.phrase(scene, dice) for _ in range(50)):
        assert {scene.amount, scene.colour, scene.shape} <= allowed
        others = set(shapes.COLOURS) - {scene.colour}
        assert (scene.colour in text) == allowed.isdisjoint(others), text


def test_the_report_says_that_the_shipped_weights_are_good_and_small() -> None:
    weights = train_shapes.DIRECTORY / "open_clip_model.safetensors"
    assert REPORT["accuracy"] >= train_shapes.SMALLEST_ACCURACY
    assert REPORT["accuracy_bfloat16"] >= train_shapes.SMALLEST_BFLOAT16_ACCURACY
    assert REPORT["bytes"] == weights.stat().st_size < train_shapes.LARGEST_FILE_BYTES


def test_the_shipped_config_is_the_one_that_the_script_writes() -> None:
    shipped = (train_shapes.DIRECTORY / "open_clip_config.json").read_text()
    assert json.loads(shipped) == json.loads(json.dumps(train_shapes.CONFIG))


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.98), ("bf16", 0.95)])
def test_the_shipped_weights_know_pictures_they_never_saw(precision: str, least: float) -> None:
    pictures = shapes.collection(128, seed=987_654)
    measured = train_shapes.measure(train_shapes.DIRECTORY, pictures, precision=precision)
    assert measured.accuracy >= least


# What people type, and what every picture that fits shows.
QUERIES = {
    "a red circle": "red circle",
    "green triangle": "green triangle",
    "a big blue square": "a big blue square",
    "tiny pink heart": "a small pink heart",
    "a photo of an orange star": "orange star",
    "The Purple Diamond": "purple diamond",
    "three yellow rings": "three yellow rings",
    "black crosses": "black crosses",
}


@torch.inference_mode()
def test_queries_as_people_type_them_find_their_picture() -> None:
    name = f"local-dir:{train_shapes.DIRECTORY}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    dice = random.Random(9)
    pictures = torch.stack([preprocess(shapes.draw(c, dice)) for c in shapes.CAPTIONS])
    images = model.eval().encode_image(pictures, normalize=True)
    asked = model.encode_text(open_clip.get_tokenizer(name)(list(QUERIES)), normalize=True)
    found = [shapes.CAPTIONS[best] for best in (asked @ images.T).argmax(1)]
    pairs = zip(found, QUERIES.values(), strict=True)
    assert [(caption, wanted) for caption, wanted in pairs if not caption.endswith(wanted)] == []
