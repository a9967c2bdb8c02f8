"""transformers itself is the yardstick: what it saved answers as it does there."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data
from torch import nn

from api_client.wire.errors import BadCheckpoint
from api_client.wire.messages import Kind
from worker.backends import hugging_face
from worker.backends.base import Placement
from worker.backends.clip_model import ClipModel
from worker.backends.openclip import OpenClip
from worker.backends.recipes import Recipe
from worker.catalogue import Entry

PHOTOS = [Image.fromarray(picture()) for picture in (data.astronaut, data.chelsea, data.coffee)]
TEXTS = ["a cat", "", "word " * 100]
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 64, "layers": 3, "width": 64, "head_width": 16, "patch_size": 16}


def saved(folder: Path, activation: str) -> Any:
    """transformers' CLIPModel with seeded random weights, also as it saves one."""
    from transformers import CLIPConfig, CLIPModel

    same = {"projection_dim": 24, "hidden_act": activation}
    text = {"hidden_size": 32, "intermediate_size": 128, "max_position_embeddings": 24}
    vision = {"hidden_size": 64, "intermediate_size": 256, "image_size": 64, "patch_size": 16}
    config = CLIPConfig(
        text_config=same | text | {"num_hidden_layers": 2, "num_attention_heads": 2},
        vision_config=same | vision | {"num_hidden_layers": 3, "num_attention_heads": 4},
        projection_dim=24,
    )
    torch.manual_seed(7)
    model = CLIPModel(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)  # biases too, which are zeros otherwise
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    saved(folder, "quick_gelu")
    return folder


@pytest.fixture
def backend(tmp_path: Path) -> OpenClip:
    return OpenClip(Placement(cache_dir=tmp_path / "cache"))


@pytest.fixture
def entry_of(tmp_path: Path) -> Callable[..., Entry]:
    """An entry with open_clip's JSON of the same network, or of one that `other` makes of it."""

    def make(checkpoint: Path, *, quick_gelu: bool = True, **other: Any) -> Entry:
        model = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": quick_gelu}
        file = tmp_path / "network.json"
        file.write_text(json.dumps(model | other))
        return Entry("mine/tuned", architecture=str(file), checkpoint=checkpoint)

    return make


@pytest.fixture
def changed(theirs: Path, tmp_path: Path) -> Callable[..., Path]:
    """What transformers saved, with another config.json."""

    def make(**config: Any) -> Path:
        file = tmp_path / "model.safetensors"
        file.hardlink_to(theirs / "model.safetensors")
        told = json.loads((theirs / "config.json").read_text()) | config
        file.with_name("config.json").write_text(json.dumps(told))
        return file

    return make


def rows(model: ClipModel, kind: Kind, items: list[Any]) -> NDArray[np.float32]:
    prepare = model.prepare_image if kind is Kind.IMAGE else model.prepare_text
    return normalised(model.run(kind, [prepare(item) for item in items]))


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.inference_mode()
def test_what_transformers_saved_answers_as_it_does_there(
    backend: OpenClip, entry_of: Callable[..., Entry], tmp_path: Path, activation: str
) -> None:
    reference = saved(tmp_path / "clip", activation)
    entry = entry_of(tmp_path / "clip" / "model.safetensors", quick_gelu=activation == "quick_gelu")
    backend.check(entry)
    model = backend.load(entry)

    preprocess = open_clip.image_transform(64, is_train=False)
    pixels = torch.stack([preprocess(photo) for photo in PHOTOS])
    want = reference.get_image_features(pixel_values=pixels).pooler_output.numpy()
    np.testing.assert_allclose(rows(model, Kind.IMAGE, PHOTOS), normalised(want), atol=1e-5)

    tokens = open_clip.SimpleTokenizer(context_length=24)(TEXTS)
    want = reference.get_text_features(input_ids=tokens).pooler_output.numpy()
    np.testing.assert_allclose(rows(model, Kind.TEXT, TEXTS), normalised(want), atol=1e-5)


def test_older_files_with_position_ids_are_the_same_model_and_space(
    backend: OpenClip, entry_of: Callable[..., Entry], theirs: Path, tmp_path: Path
) -> None:
    state = load_file(theirs / "model.safetensors")
    old = {
        f"{tower}_model.embeddings.position_ids": torch.arange(3)[None]
        for tower in ("text", "vision")
    }
    torch.save(state | old, tmp_path / "pytorch_model.bin")
    renamed = {name: of.contiguous() for name, of in hugging_face.renamed(state).items()}
    save_file(renamed, tmp_path / "open_clip_model.safetensors")
    files = (theirs / "model.safetensors", *tmp_path.glob("*model.*"))
    models = [backend.load(entry_of(file)) for file in files]
    assert len(models) == 3
    assert len({model.traits.fingerprint for model in models}) == 1


def test_the_usual_clip_of_transformers_is_the_vit_b_32_of_the_registry() -> None:
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        usual = CLIPModel(CLIPConfig()).state_dict()
    model = Recipe.of(Entry("", architecture="ViT-B-32-quickgelu")).build(torch.float32)
    shapes = {name: of.shape for name, of in hugging_face.renamed(usual).items()}
    assert shapes == {name: of.shape for name, of in model.state_dict().items()}


# Networks that the shapes of the weights do not tell


def refusals(backend: OpenClip, entry: Entry) -> Iterator[str]:
    for step in (backend.check, backend.load):
        with pytest.raises(BadCheckpoint) as caught:
            step(entry)
        yield str(caught.value)


def test_another_activation_than_its_config_says_is_refused(
    backend: OpenClip, entry_of: Callable[..., Entry], theirs: Path
) -> None:
    file = theirs / "model.safetensors"
    backend.load(entry_of(file))  # what was found usable once has to be asked again
    for told in refusals(backend, entry_of(file, quick_gelu=False)):
        assert "text_config.hidden_act quick_gelu instead of gelu" in told
        assert 'take the other "quick_gelu", true or false, in a JSON of it' in told


@pytest.mark.parametrize(
    ("asked", "right"),
    [("ViT-B-32", "ViT-B-32-quickgelu"), ("ViT-B-32-quickgelu", "ViT-B-32")],
)
def test_of_the_registry_the_right_architecture_is_named(
    tmp_path: Path, asked: str, right: str
) -> None:
    activation = "quick_gelu" if asked == "ViT-B-32" else "gelu"
    config = tmp_path / "config.json"
    part = {"hidden_act": activation}
    config.write_text(json.dumps({"text_config": part, "vision_config_dict": part}))
    model = Recipe.of(Entry("", architecture=asked)).build(torch.float32)
    with pytest.raises(BadCheckpoint, match=f"than {asked}: .*; take {right}$"):
        hugging_face.require_network(config, model, asked)


def test_other_heads_than_its_config_says_are_refused(
    backend: OpenClip, entry_of: Callable[..., Entry], theirs: Path
) -> None:
    entry = entry_of(theirs / "model.safetensors", text_cfg=TEXT | {"heads": 4})
    for told in refusals(backend, entry):
        assert told.endswith(": text_config.num_attention_heads 2 instead of 4")


@pytest.mark.parametrize("content", ["", "[]", '{"text_config": 3}'])
def test_a_config_that_is_none_is_refused(
    backend: OpenClip, entry_of: Callable[..., Entry], changed: Callable[..., Path], content: str
) -> None:
    file = changed()
    file.with_name("config.json").write_text(content)
    for told in refusals(backend, entry_of(file)):
        assert "config.json is none of transformers' CLIP" in told


def test_without_a_config_the_entry_is_believed(
    backend: OpenClip, entry_of: Callable[..., Entry], changed: Callable[..., Path]
) -> None:
    file = changed()
    file.with_name("config.json").unlink()
    backend.load(entry_of(file, quick_gelu=False))


def test_a_config_beside_weights_of_open_clip_is_not_asked(
    backend: OpenClip, entry_of: Callable[..., Entry], changed: Callable[..., Path]
) -> None:
    file = changed()
    state = hugging_face.renamed(load_file(file))
    other = file.with_name("open_clip_model.safetensors")
    save_file({name: of.contiguous() for name, of in state.items()}, other)
    backend.load(entry_of(other, quick_gelu=False))


# Weights that do not fit


@pytest.mark.parametrize(
    ("name", "instead", "told"),
    [
        ("text_model.encoder.layers.0.self_attn.k_proj.bias", None, "attn.in_proj_bias missing"),
        ("text_model.encoder.layers.1.self_attn.q_proj.weight", (3,), "in_proj_weight missing"),
        ("text_projection.weight", (24, 31), "text_projection (31x24 instead of 32x24)"),
        ("visual_projection.weight", None, "visual.proj missing"),
        ("visual_projection.weight", (), "visual.proj (scalar instead of 64x24)"),
        ("vision_model.head.probe", (3,), "vision_model.head.probe unexpected"),
        ("vision_model.pre_layrnorm.weight", None, "text_model.embeddings.position_embedding"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    backend: OpenClip,
    entry_of: Callable[..., Entry],
    theirs: Path,
    tmp_path: Path,
    name: str,
    instead: tuple[int, ...] | None,
    told: str,
) -> None:
    state = load_file(theirs / "model.safetensors")
    if instead is None:
        del state[name]
    else:
        state[name] = torch.zeros(instead)
    file = tmp_path / "weights.safetensors"
    save_file(state, file)
    for sentence in refusals(backend, entry_of(file)):
        assert "belongs to another architecture" in sentence
        assert told in sentence
