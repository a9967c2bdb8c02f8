"""open_clip's own functions are the yardstick: the same file, the same inputs, the same vectors."""

import gc
import json
import logging
import os
import pickle
import resource
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from open_clip import factory, pretrained
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data
from torch import nn

from api_client.wire.errors import BadCheckpoint, ImageUnreadable, LoadFailed, WeightsUnavailable
from api_client.wire.messages import Kind
from worker.backends import checkpoints, hub
from worker.backends.base import Placement
from worker.backends.clip_model import ClipModel
from worker.backends.openclip import OpenClip
from worker.backends.placement import best_precision
from worker.backends.recipes import Recipe
from worker.catalogue import BUILT_IN, Catalogue, Entry

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
PHOTOS = [
    Image.fromarray(picture())
    for picture in (data.astronaut, data.chelsea, data.coffee, data.rocket, data.camera)
]
TEXTS = [
    "a cat",
    "",
    "An astronaut, smiling;  in ORANGE",
    "word " * 100,
    "naïve café 🚀",
    "1 2 3 4",
]
SIX = [entry for entry in Catalogue.read(BUILT_IN) if entry.tag]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("small") / "open_clip_config.json"
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    file.write_text(json.dumps({"model_cfg": SMALL, "preprocess_cfg": preprocess}))
    return file


@pytest.fixture(scope="module")
def small(config: Path) -> Entry:
    """A small model with random weights, beside its config."""
    torch.manual_seed(7)
    file = config.with_name("open_clip_model.safetensors")
    save_file(open_clip.CLIP(**deepcopy(SMALL)).state_dict(), file)
    return Entry(id="small/random", architecture=str(config), checkpoint=file)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models_dir with the true ViT-B-32, random weights, under a tag."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(7)
    (folder / "ViT-B-32").mkdir()
    state = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32")).state_dict()
    save_file(state, folder / "ViT-B-32" / "openai.safetensors")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all tests with the true ViT-B-32, so that it is prepared once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def vit(models: Path, cache: Path) -> Callable[..., ClipModel]:
    """Loads the true ViT-B-32."""

    def load(precision: Any = "float32") -> ClipModel:
        placement = Placement(cache_dir=cache, models_dir=models, precision=precision)
        entry = Entry(id="ViT-B-32/openai", architecture="ViT-B-32", tag="openai")
        return OpenClip(placement).load(entry)

    return load


@pytest.fixture
def backend(tmp_path: Path) -> OpenClip:
    return OpenClip(Placement(cache_dir=tmp_path / "cache"))


@pytest.fixture
def model(backend: OpenClip, small: Entry) -> ClipModel:
    return backend.load(small)


def images(model: ClipModel, pictures: list[Image.Image]) -> NDArray[np.float32]:
    return model.run(Kind.IMAGE, [model.prepare_image(picture) for picture in pictures])


def texts(model: ClipModel, sentences: list[str]) -> NDArray[np.float32]:
    return model.run(Kind.TEXT, [model.prepare_text(sentence) for sentence in sentences])


def least_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).min())


@torch.inference_mode()
def plain(
    name: str, *, first: int | None = None, **options: Any
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What open_clip itself answers for the first PHOTOS and TEXTS, one at a time."""
    model, _, preprocess = open_clip.create_model_and_transforms(name, **options)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    pictures = [model.encode_image(preprocess(photo)[None]) for photo in PHOTOS[:first]]
    sentences = [model.encode_text(tokenizer([text])) for text in TEXTS[:first]]
    return torch.cat(pictures).numpy(), torch.cat(sentences).numpy()


# The same vectors as open_clip


def test_a_small_model_answers_as_open_clip_does_whatever_the_batch(
    backend: OpenClip, small: Entry
) -> None:
    want_images, want_texts = plain(f"local-dir:{Path(small.architecture).parent}")
    model = backend.load(small)
    for pictures in (PHOTOS, PHOTOS * 3):
        got = images(model, pictures)[: len(PHOTOS)]
        assert least_cosine(got, want_images) >= 0.99999
    assert least_cosine(texts(model, TEXTS), want_texts) >= 0.99999
    alone = np.concatenate([texts(model, [text]) for text in TEXTS])
    assert least_cosine(alone, want_texts) >= 0.99999


def test_the_true_vit_b_32_answers_as_open_clip_does_with_the_openai_activation(
    vit: Callable[..., ClipModel], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(models / "ViT-B-32" / "openai.safetensors")
    want_images, want_texts = plain("ViT-B-32", first=3, pretrained=file, force_quick_gelu=True)
    quick = vit()
    assert least_cosine(images(quick, PHOTOS[:3]), want_images) >= 0.99999
    assert least_cosine(texts(quick, TEXTS[:3]), want_texts) >= 0.99999
    quick_gelu = open_clip.transformer.QuickGELU
    monkeypatch.setattr(quick_gelu, "forward", lambda _, x: nn.functional.gelu(x))
    with_another = images(quick, PHOTOS[:1])
    assert least_cosine(with_another, want_images[:1]) < 0.99999  # it would have shown


@pytest.mark.parametrize("entry", SIX, ids=lambda entry: entry.id)
def test_the_activation_is_the_one_that_the_weights_were_trained_with(entry: Entry) -> None:
    built = Recipe.of(entry).build(torch.float32)
    kinds = {type(m) for m in built.modules() if "GELU" in type(m).__name__}
    wanted = open_clip.transformer.QuickGELU if entry.tag == "openai" else nn.GELU
    assert kinds == {wanted}


def test_other_tags_that_were_trained_with_quick_gelu_get_it() -> None:
    assert Recipe.of(Entry(id="", architecture="ViT-B-32", tag="laion400m_e32")).model["quick_gelu"]
    assert Recipe.of(Entry(id="", architecture="ViT-B-32-quickgelu", tag="mine")).model[
        "quick_gelu"
    ]
    assert "quick_gelu" not in Recipe.of(Entry(id="", architecture="ViT-B-32", tag="mine")).model


def prepared_for(entry: Entry) -> dict[str, Any]:
    return dict(merge_preprocess_dict(asdict(PreprocessCfg()), Recipe.of(entry).preprocess))


def test_without_a_tag_pictures_are_prepared_as_all_weights_of_the_architecture_want() -> None:
    differ = {
        (architecture, tag)
        for architecture, tag in open_clip.list_pretrained()
        if prepared_for(Entry(id="", architecture=architecture))
        != prepared_for(Entry(id="", architecture=architecture, tag=tag))
    }
    dfn = {("ViT-H-14", "dfn5b"), ("ViT-H-14-quickgelu", "dfn5b")}
    assert differ == {("ViT-L-14", "laion2b_s32b_b82k"), *dfn}
    mine = Entry(id="", architecture="ViT-B-16-SigLIP", tag="mine")
    assert prepared_for(mine)["resize_mode"] == "squash"
    assert prepared_for(Entry(id="", architecture="ViT-S-16")) == asdict(PreprocessCfg())


@pytest.mark.parametrize(
    ("other", "doubt"),
    [
        (
            {"resize_mode": "squash"},
            "prepared as OpenAI's, those for some weights of small are not",
        ),
        ({"quick_gelu": True}, "its activation is GELU, all weights of small"),
    ],
)
def test_where_weights_without_a_tag_may_be_others_the_log_asks_for_it(
    backend: OpenClip,
    small: Entry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    other: dict[str, Any],
    doubt: str,
) -> None:
    monkeypatch.setitem(factory._MODEL_CONFIGS, "small", SMALL)
    two = {"one": {"url": "x", "quick_gelu": True}, "other": {"url": "x", **other}}
    monkeypatch.setitem(pretrained._PRETRAINED, "small", two)
    backend.load(replace(small, architecture="small", tag="one"))
    assert not caplog.messages
    backend.load(replace(small, architecture="small"))
    [warning] = caplog.messages
    assert doubt in warning
    assert warning.endswith("and the tag of what that was tuned from")


@pytest.mark.parametrize("entry", SIX, ids=lambda entry: entry.id)
def test_the_catalogue_promises_what_the_architecture_has(entry: Entry) -> None:
    recipe = Recipe.of(entry)
    assert (recipe.dimension, recipe.input_size) == (entry.dimension, entry.input_size)


@pytest.mark.parametrize(
    "preprocess",
    [
        {"resize_mode": "squash", "interpolation": "bilinear"},
        {"resize_mode": "longest", "fill_color": 9},
        {"interpolation": "bicubic", "mean": 0.5, "std": [0.5, 0.4, 0.3]},
    ],
    ids=lambda preprocess: preprocess.get("resize_mode", "shortest"),
)
def test_the_pixels_are_those_that_open_clip_would_normalise(
    backend: OpenClip, small: Entry, tmp_path: Path, preprocess: dict[str, Any]
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_cfg": SMALL, "preprocess_cfg": preprocess}))
    model = backend.load(Entry(id="x", architecture=str(file), checkpoint=small.checkpoint))
    config = open_clip.transform.PreprocessCfg(size=64, **preprocess)
    reference = open_clip.transform.image_transform_v2(config, is_train=False)
    odd = [PHOTOS[1].convert(mode) for mode in ("L", "P", "RGBA", "CMYK", "1", "I;16", "F")]
    odd += [Image.new("RGB", (1, 1), "red"), Image.new("RGB", (3000, 10), "red")]
    for picture in PHOTOS + odd:
        if preprocess.get("resize_mode") == "longest" and min(picture.size) == 10:
            with pytest.raises(ImageUnreadable):  # nothing of the strip would be left
                model.prepare_image(picture)
            continue
        pixels = torch.from_numpy(model.prepare_image(picture).copy()).permute(2, 0, 1) / 255
        want = reference.transforms[-1](pixels)
        assert torch.equal(want, reference(picture))


def test_bfloat16_stays_close_to_float32_on_the_true_vit_b_32(
    vit: Callable[..., ClipModel],
) -> None:
    exact, lower = vit(), vit(precision="bfloat16")
    assert least_cosine(images(lower, PHOTOS[:2]), images(exact, PHOTOS[:2])) >= 0.999
    assert least_cosine(texts(lower, TEXTS[:3]), texts(exact, TEXTS[:3])) >= 0.999
    assert lower.footprint().host_bytes <= exact.footprint().host_bytes * 0.51


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precisions_drift_little_over_batch_compositions(
    small: Entry, tmp_path: Path, precision: Any
) -> None:
    exact, lower = (
        OpenClip(Placement(cache_dir=tmp_path, precision=each)).load(small)
        for each in ("float32", precision)
    )
    assert least_cosine(images(lower, PHOTOS), images(exact, PHOTOS)) >= 0.999
    alone = np.concatenate([texts(lower, [text]) for text in TEXTS])
    assert least_cosine(texts(lower, TEXTS), alone) >= 0.999
    assert least_cosine(texts(lower, TEXTS), texts(exact, TEXTS)) >= 0.999


def test_the_best_precision_of_a_cpu_is_one_that_it_computes_natively() -> None:
    flags = torch.cpu.get_capabilities()
    native = flags.get("avx512_bf16") or flags.get("amx_bf16")
    assert best_precision("cpu") == ("bfloat16" if native else "float32")


# Texts


def test_only_a_text_that_was_cut_is_called_truncated(model: ClipModel) -> None:
    flags = [model.prepare_text("word " * words).truncated for words in (0, 21, 22, 23, 24, 200)]
    assert flags == [False, False, False, True, True, True]


def test_a_text_is_as_long_as_what_is_computed_of_it(model: ClipModel) -> None:
    lengths = [model.prepare_text("word " * words).length for words in (0, 3, 22, 200)]
    assert lengths == [2, 5, 24, 24]


LONG_TEXTS = [
    "a red  circle,\n" * 400,
    "\n".join(f"line {i}: naïve café &amp; 🚀" for i in range(200)),
    "\n" * 5000 + "words " * 50 + "\nand more",
    f"{'&amp;' * 900}\n" * 2,
    "<b>&lt;\n" * 700,
    "ΟΔΟΣ " * 30 + "\n" * 5000 + "words",
]


def test_the_first_lines_of_a_long_text_have_the_tokens_of_all_of_it(model: ClipModel) -> None:
    prepared = [model.prepare_text(text) for text in LONG_TEXTS]
    whole = open_clip.tokenize(LONG_TEXTS, context_length=24)
    assert np.array_equal(np.stack([one.tokens for one in prepared]), whole.numpy())
    assert all(one.truncated for one in prepared)


def test_no_more_lines_of_a_long_text_are_cleaned_than_are_read(model: ClipModel) -> None:
    tokenizer = model._tokens._tokenizer
    seen: list[int] = []
    clean = tokenizer.clean_fn
    tokenizer.clean_fn = lambda text: seen.append(len(text)) or clean(text)
    model.prepare_text("a\n" * 50_000)
    assert max(seen) < 10_000


def test_tokenizing_from_many_threads_gives_each_text_its_own_tokens(model: ClipModel) -> None:
    many = [f"picture number {i} of {i * i}" for i in range(300)]
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(model.prepare_text, many))
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    assert np.array_equal(np.stack([row.tokens for row in rows]), tokenizer(many).numpy())


def test_the_tokenizer_does_not_remember_words_without_end(
    backend: OpenClip, small: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.backends.texts.MAX_KNOWN_WORDS", 10)
    model = backend.load(small)
    before = model.prepare_text("alpha beta").tokens
    for i in range(30):
        model.prepare_text(f"w{'abcdefghij'[i % 10]}{'abc'[i // 10]}")
    assert len(model._tokens._tokenizer.cache) <= 12
    assert np.array_equal(model.prepare_text("alpha beta").tokens, before)


def test_a_tokenizer_whose_files_are_elsewhere_is_one_sentence(
    small: Entry, tmp_path: Path
) -> None:
    config = deepcopy(SMALL)
    config["text_cfg"]["hf_tokenizer_name"] = "no-such/tokenizer"
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    backend = OpenClip(Placement(cache_dir=tmp_path / "cache", offline=True))
    with pytest.raises(WeightsUnavailable, match=r"no tokenizer for .*; name as `architecture`"):
        backend.load(Entry(id="x", architecture=str(file), checkpoint=small.checkpoint))


@pytest.fixture
def with_bert(tmp_path: Path) -> Path:
    """A config whose text tower is of a repository, and its tokenizer beside it."""
    text = {"hf_model_name": "no-such/bert", "hf_tokenizer_name": "no-such/bert"}
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": {**SMALL, "text_cfg": text}}))
    file.with_name("tokenizer_config.json").write_text("{}")
    return file


def test_a_text_tower_that_is_elsewhere_is_one_sentence(with_bert: Path, tmp_path: Path) -> None:
    backend = OpenClip(Placement(cache_dir=tmp_path / "cache", offline=True))
    with pytest.raises(WeightsUnavailable, match=r"no text tower for .*; name as `architecture`"):
        backend.check(Entry(id="x", architecture=str(with_bert)))


def test_a_name_that_no_folder_can_have_is_one_sentence(with_bert: Path, tmp_path: Path) -> None:
    with_bert.write_text(with_bert.read_text().replace("no-such/bert", "b" * 300))
    backend = OpenClip(Placement(cache_dir=tmp_path / "cache", offline=True))
    with pytest.raises(WeightsUnavailable, match=r"no text tower for .*: Repo id must"):
        backend.check(Entry(id="x", architecture=str(with_bert)))


def test_a_tokenizer_beside_a_config_brings_no_text_tower(
    backend: OpenClip, with_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_answers", lambda _: False)
    with pytest.raises(WeightsUnavailable, match=r"^text files of .* is away; name"):
        backend.check(Entry(id="x", architecture=str(with_bert)))


def test_no_hub_is_asked_for_what_is_in_a_folder(with_bert: Path) -> None:
    there = with_bert.read_text().replace("no-such/bert", str(with_bert.parent))
    with_bert.write_text(there)
    assert not Recipe.of(Entry(id="x", architecture=str(with_bert))).asks_hub


def test_a_tokenizer_whose_words_are_missing_is_one_sentence(small: Entry, tmp_path: Path) -> None:
    config = deepcopy(SMALL)
    config["text_cfg"]["hf_tokenizer_name"] = "some/bert"
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    file.with_name("tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    backend = OpenClip(Placement(cache_dir=tmp_path / "cache", offline=True))
    with pytest.raises(WeightsUnavailable, match=r"no tokenizer for .* lack words: token"):
        backend.load(Entry(id="x", architecture=str(file), checkpoint=small.checkpoint))


# Building without memory


@pytest.mark.parametrize("architecture", ["PE-Core-T-16-384", "vit_relpos_medium_patch16_cls_224"])
def test_buffers_that_are_in_no_file_are_as_open_clip_makes_them(architecture: str) -> None:
    built = Recipe.of(Entry(id="", architecture=architecture)).build(torch.float32)
    reference = open_clip.create_model(architecture, load_weights=False)
    assert built.state_dict().keys() == reference.state_dict().keys()
    assert all(parameter.is_meta for parameter in built.parameters())
    buffers = dict(built.named_buffers())
    for name, buffer in reference.named_buffers():
        assert torch.equal(buffers[name], buffer), name


def test_a_module_built_meanwhile_in_another_thread_is_real() -> None:
    made: list[nn.Module] = []

    class Slow(nn.Module):
        def __init__(self, **_: object) -> None:
            super().__init__()
            thread = threading.Thread(target=lambda: made.append(nn.Linear(2, 2)))
            thread.start()
            thread.join()
            self.own = nn.Linear(2, 2)

    recipe = Recipe("slow.json", {"vision_cfg": {}, "text_cfg": {}}, {}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "CLIP", Slow)
        built = recipe.build(torch.float32)
    assert all(parameter.is_meta for parameter in built.parameters())
    assert not any(parameter.is_meta for parameter in made[0].parameters())


def test_a_constructor_that_computes_with_its_parameters_is_built_for_real_first() -> None:
    class Needy(nn.Module):
        def __init__(self, **_: object) -> None:
            super().__init__()
            self.own = nn.Linear(2, 2)
            self.register_buffer("mask", self.own.weight * 0 + 3, persistent=False)

    recipe = Recipe("needy.json", {"vision_cfg": {}, "text_cfg": {}}, {}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "CLIP", Needy)
        built = recipe.build(torch.float32)
    assert all(parameter.is_meta for parameter in built.parameters())
    assert torch.equal(built.get_buffer("mask"), torch.full((2, 2), 3.0))


# Checkpoints


def saved(small: Entry, file: Path, change: Callable[[dict[str, Any]], Any] = dict) -> Entry:
    assert small.checkpoint is not None
    state = change(load_file(small.checkpoint))
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return Entry(id="x/y", architecture=small.architecture, checkpoint=file)


def test_whoever_writes_over_a_checkpoint_changes_no_model_that_is_in_memory(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    entry = saved(small, tmp_path / "weights.safetensors")
    other = saved(
        small, tmp_path / "other.safetensors", lambda state: {n: t * 2 for n, t in state.items()}
    )
    assert entry.checkpoint is not None
    assert other.checkpoint is not None
    model = backend.load(entry)
    before = images(model, PHOTOS)

    shutil.copyfile(other.checkpoint, entry.checkpoint)
    assert np.array_equal(images(model, PHOTOS), before)
    os.truncate(entry.checkpoint, 100)  # would end the process
    assert np.array_equal(images(model, PHOTOS), before)


def test_weights_that_are_replaced_while_they_are_prepared_are_not_called_those_before(
    backend: OpenClip, small: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = saved(small, tmp_path / "weights.pt")
    other = saved(small, tmp_path / "new.pt", lambda state: {n: t * 2 for n, t in state.items()})
    assert entry.checkpoint is not None
    assert other.checkpoint is not None
    flush, moved = checkpoints._flush, other.checkpoint.rename

    def replaced_meanwhile(file: Path) -> None:
        flush(file)
        moved(entry.checkpoint)
        monkeypatch.setattr(checkpoints, "_flush", flush)

    monkeypatch.setattr(checkpoints, "_flush", replaced_meanwhile)
    before, after = backend.load(entry), backend.load(entry)
    assert not np.array_equal(images(before, PHOTOS[:1]), images(after, PHOTOS[:1]))
    assert before.traits.fingerprint != after.traits.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        dict,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {name: tensor.half().float() for name, tensor in state.items()},
        lambda state: {**state, "logit_scale": state["logit_scale"].reshape(1)},
    ],
    ids=["plain", "training", "parallel", "rounded", "scale"],
)
def test_pickled_checkpoints_of_every_usual_kind_load_and_are_prepared_once(
    backend: OpenClip,
    small: Entry,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = saved(small, tmp_path / "weights.pt", change)
    first = backend.load(entry)
    (prepared,) = (tmp_path / "cache").rglob("*.safetensors")
    assert least_cosine(images(first, PHOTOS), images(backend.load(small), PHOTOS)) > 0.999
    monkeypatch.setattr(torch, "load", None)  # never again
    again = backend.load(entry)
    assert again.traits == first.traits
    assert prepared.exists()


def test_weights_of_a_parallel_training_load_from_safetensors_too(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    def parallel(state: dict[str, Any]) -> dict[str, Any]:
        return {f"module.{name}": tensor for name, tensor in state.items()}

    model = backend.load(saved(small, tmp_path / "weights.safetensors", parallel))
    assert np.array_equal(images(model, PHOTOS), images(backend.load(small), PHOTOS))


def test_checkpoints_of_the_old_pickle_format_load(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    assert small.checkpoint is not None
    file = tmp_path / "weights.bin"
    torch.save(load_file(small.checkpoint), file, _use_new_zipfile_serialization=False)
    entry = Entry(id="x", architecture=small.architecture, checkpoint=file)
    assert backend.load(entry).traits.fingerprint == backend.load(small).traits.fingerprint


def test_position_embeddings_of_another_input_size_are_resized_as_open_clip_does(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    config = deepcopy(SMALL)
    config["vision_cfg"]["image_size"] = 96
    folder = tmp_path / "larger"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    entry = saved(small, folder / "open_clip_model.safetensors")
    want, _ = plain(f"local-dir:{folder}")
    entry = Entry(
        id="x", architecture=str(folder / "open_clip_config.json"), checkpoint=entry.checkpoint
    )
    assert least_cosine(images(backend.load(entry), PHOTOS), want) >= 0.99999


def test_one_file_in_two_architectures_is_resized_for_each(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    for size in ([64, 128], [128, 64]):  # as many patches, in another grid
        config = deepcopy(SMALL)
        config["vision_cfg"]["image_size"] = size
        folder = tmp_path / str(size[0])
        folder.mkdir()
        file = folder / "open_clip_config.json"
        file.write_text(json.dumps({"model_cfg": config}))
        saved(small, folder / "open_clip_model.safetensors")
        want, _ = plain(f"local-dir:{folder}")
        entry = Entry(id="x", architecture=str(file), checkpoint=small.checkpoint)
        assert least_cosine(images(backend.load(entry), PHOTOS), want) >= 0.99999


def test_the_fingerprint_names_the_space_and_not_the_file(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    base = backend.load(small).traits.fingerprint
    assert backend.load(saved(small, tmp_path / "copy.pt")).traits.fingerprint == base
    other = saved(
        small, tmp_path / "other.pt", lambda s: {**s, "visual.proj": s["visual.proj"] * 2}
    )
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_cfg": SMALL}))  # another mean, another std
    cache = tmp_path / "cache"
    others = [
        backend.load(other),
        backend.load(Entry(id="x", architecture=str(config), checkpoint=small.checkpoint)),
        OpenClip(Placement(cache_dir=cache, decode="fast")).load(small),
        OpenClip(Placement(cache_dir=cache, precision="bfloat16")).load(small),
    ]
    fingerprints = {base, *(model.traits.fingerprint for model in others)}
    assert len(fingerprints) == 5


def test_without_room_for_a_prepared_copy_the_model_loads_all_the_same(
    small: Entry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    backend = OpenClip(Placement(cache_dir=tmp_path / "file" / "cache"))
    entry = saved(small, tmp_path / "weights.pt")
    with caplog.at_level(logging.WARNING):
        model = backend.load(entry)
    assert "no prepared copy" in caplog.text
    assert images(model, PHOTOS).shape == (5, 32)


def test_a_disk_that_fills_up_while_preparing_leaves_no_half_file(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    entry = saved(small, tmp_path / "weights.pt")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        model = backend.load(entry)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert images(model, PHOTOS).shape == (5, 32)
    left = {file.suffix for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    assert left <= {".lock", ".json"}


# Refusals, each in one sentence


class Evil:
    def __init__(self, never: Path) -> None:
        self.never = never

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.never,))


def test_a_checkpoint_that_holds_code_is_not_run(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    file, never = tmp_path / "weights.pt", tmp_path / "never"
    torch.save({"state_dict": Evil(never)}, file)
    with pytest.raises(BadCheckpoint, match="could run code"):
        backend.load(Entry(id="x", architecture=small.architecture, checkpoint=file))
    file.write_bytes(pickle.dumps(Evil(never), protocol=2))
    with pytest.raises(BadCheckpoint):
        backend.load(Entry(id="x", architecture=small.architecture, checkpoint=file))
    assert not never.exists()


def test_a_whole_model_is_refused_with_the_name_of_what_could_run_code(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    torch.save(nn.Linear(2, 2), file := tmp_path / "model.pt")
    with pytest.raises(BadCheckpoint, match=r"\(torch.nn.modules.linear.Linear\); save its state"):
        backend.load(Entry(id="x", architecture=small.architecture, checkpoint=file))


def test_a_folder_in_the_place_of_a_checkpoint_is_called_one(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    with pytest.raises(BadCheckpoint, match="is a folder; name the file"):
        backend.load(Entry(id="x", architecture=small.architecture, checkpoint=tmp_path))


def test_a_torchscript_archive_is_refused_with_what_to_do(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    file = tmp_path / "ViT-B-32.pt"
    with pytest.warns(FutureWarning, match=r"deprecated|not supported"):
        torch.jit.script(nn.Linear(2, 2)).save(file)
    with pytest.raises(BadCheckpoint, match=r"TorchScript archive.*as safetensors"):
        backend.load(Entry(id="x", architecture=small.architecture, checkpoint=file))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_half_downloaded_checkpoint_is_refused_before_loading(
    backend: OpenClip, small: Entry, tmp_path: Path, suffix: str
) -> None:
    entry = saved(small, tmp_path / f"weights{suffix}")
    assert entry.checkpoint is not None
    whole = entry.checkpoint.read_bytes()
    for length in (0, 5, 1000, len(whole) // 2):
        entry.checkpoint.write_bytes(whole[:length])
        with pytest.raises(BadCheckpoint, match="truncated or corrupt"):
            backend.check(entry)
        with pytest.raises(BadCheckpoint, match="truncated or corrupt"):
            backend.load(entry)


def test_what_was_saved_as_a_checkpoint_and_is_none_is_not_said_to_run_code(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    file = tmp_path / "open_clip_pytorch_model.bin"
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for said in (pointer, "<!DOCTYPE html><title>404</title>", "Entry not found"):
        file.write_text(said)
        with pytest.raises(
            BadCheckpoint, match=r"if it is a checkpoint, save its state_dict as safetensors$"
        ):
            backend.check(replace(small, checkpoint=file))


def test_a_checkpoint_is_looked_through_once_until_it_changes(
    backend: OpenClip, small: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = saved(small, tmp_path / "weights.safetensors")
    assert entry.checkpoint is not None
    size = backend.check(entry)
    with monkeypatch.context() as patch:
        patch.setattr("worker.backends.weights.read", None)
        assert backend.check(entry) == size
    entry.checkpoint.write_bytes(entry.checkpoint.read_bytes()[:1000])
    with pytest.raises(BadCheckpoint, match="truncated or corrupt"):
        backend.check(entry)


def test_apples_weights_are_refused_in_an_architecture_that_is_not_theirs(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    stem = "image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight"
    save_file({stem: torch.zeros(4, 3, 3, 3)}, file := tmp_path / "mobileclip_s1.safetensors")
    with pytest.raises(BadCheckpoint, match=rf"another architecture: .* missing; {stem} unexpect"):
        backend.check(replace(small, checkpoint=file))


def test_weights_without_a_scale_are_refused_where_a_bias_would_be_made_of_it(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    config = json.loads(Path(small.architecture).read_text())
    config["model_cfg"]["init_logit_bias"] = -10
    (named := tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file({"stem": torch.zeros(3)}, file := tmp_path / "a.safetensors")
    with pytest.raises(BadCheckpoint, match="another architecture"):
        backend.check(replace(small, architecture=str(named), checkpoint=file))


def test_an_archive_of_numpy_is_not_called_a_corrupt_one_of_torch(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    np.savez(tmp_path / "big_vision.npz", weights=np.zeros(3))
    with pytest.raises(BadCheckpoint, match=r"npz is an archive, and none of torch's.*safetensors"):
        backend.check(replace(small, checkpoint=tmp_path / "big_vision.npz"))


def test_an_archive_whose_list_is_damaged_is_a_bad_checkpoint(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    entry = saved(small, file := tmp_path / "weights.pt")
    file.write_bytes(file.read_bytes().replace(b"PK\x01\x02", b"PK\x00\x00"))
    with pytest.raises(BadCheckpoint, match="truncated or corrupt"):
        backend.check(entry)


def test_weights_of_another_architecture_name_the_first_tensors_that_differ(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        del state["visual.class_embedding"]
        return {**state, "extra": torch.zeros(2), "visual.proj": torch.zeros(3, 3)}

    entry = saved(small, tmp_path / "weights.safetensors", change)
    for step in (backend.check, backend.load):
        with pytest.raises(BadCheckpoint) as caught:
            step(entry)
        for part in (
            "visual.class_embedding missing",
            "extra unexpected",
            "visual.proj (3x3 instead of 64x32) of another shape",
        ):
            assert part in str(caught.value)


def test_a_wrong_sha256_is_refused(backend: OpenClip, small: Entry) -> None:
    wrong = Entry(
        id="x", architecture=small.architecture, checkpoint=small.checkpoint, sha256="0" * 64
    )
    for step in (backend.check, backend.load):
        with pytest.raises(BadCheckpoint, match="SHA-256"):
            step(wrong)


def test_a_checkpoint_that_is_not_there_is_unavailable(backend: OpenClip, small: Entry) -> None:
    entry = Entry(id="x", architecture=small.architecture, checkpoint=Path("/none.safetensors"))
    for step in (backend.check, backend.load):
        with pytest.raises(WeightsUnavailable, match="no checkpoint /none"):
            step(entry)


def test_of_the_address_of_weights_that_could_not_be_fetched_no_query_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("503 for url 'http://hub/cdn/a?signature=secret'")

    monkeypatch.setattr(hub.pretrained, "download_pretrained", fail)
    monkeypatch.setattr(hub, "require", lambda *_, **__: None)
    with pytest.raises(WeightsUnavailable, match=r"503 for url 'http://hub/cdn/a'$"):
        hub.fetch("x/y", {"url": "http://hub/a"}, tmp_path, offline=False)


def test_an_unknown_architecture_lists_the_nearest(backend: OpenClip) -> None:
    with pytest.raises(LoadFailed, match=r"nearest: .*ViT-B-32"):
        backend.check(Entry(id="ViT-B-33/x", architecture="ViT-B-33", tag="x"))


def test_a_folder_is_no_architecture_as_its_preprocessing_would_not_be_read(
    backend: OpenClip, small: Entry
) -> None:
    folder = Path(small.architecture).parent
    for name in (str(folder), f"local-dir:{folder}"):
        with pytest.raises(LoadFailed, match=r"no architecture .*; name a model's open_clip_conf"):
            backend.check(replace(small, architecture=name))
    with pytest.raises(LoadFailed, match=r"no architecture 'hf-hub:.*; nearest: ViT-B-16-SigLIP"):
        backend.check(replace(small, architecture="hf-hub:timm/ViT-B-16-SigLIP"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"embed_dim": 3}',
        '{"model_cfg": 3}',
        '{"embed_dim": 3, "vision_cfg": {}, "text_cfg": null}',
    ],
)
def test_a_config_that_is_none_is_refused(backend: OpenClip, tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(LoadFailed, match=r"config\.json"):
        backend.check(Entry(id="x", architecture=str(file)))


@pytest.mark.parametrize(
    "preprocess",
    [
        [1],
        "x",
        {"mean": [0.5]},
        {"mean": {"red": 0.5}},
        {"mean": 10**400},
        {"std": "a"},
        {"interpolation": "lanczos"},
        {"resize_mode": "pad"},
        {"resize_mode": "longest", "fill_color": "x"},
        {"std": [0.5, 0, 0.5]},
    ],
    ids=lambda preprocess: f"{preprocess!s:.30}",
)
def test_pictures_that_open_clip_could_not_prepare_so_are_refused_before_loading(
    backend: OpenClip, small: Entry, tmp_path: Path, preprocess: Any
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_cfg": SMALL, "preprocess_cfg": preprocess}))
    entry = Entry(id="x", architecture=str(file), checkpoint=small.checkpoint)
    for step in (backend.check, backend.load):
        with pytest.raises(BadCheckpoint, match=r"config\.json: .* as its preprocess_cfg says: ."):
            step(entry)


def test_a_preprocess_cfg_that_is_null_leaves_all_as_usual(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    spaces = []
    for number, config in enumerate(({"preprocess_cfg": None}, {})):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps({"model_cfg": SMALL, **config}))
        entry = Entry(id="x", architecture=str(file), checkpoint=small.checkpoint)
        spaces.append(backend.load(entry).traits.fingerprint)
    assert spaces[0] == spaces[1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokenizer_kwargs": [1]},
        {"tokenizer_kwargs": {"clean": "nonsense"}},
        {"tokenizer_kwargs": {"nonsense": 1}},
        {"hf_tokenizer_name": ["x"]},
    ],
    ids=str,
)
def test_a_config_that_makes_no_tokenizer_is_refused(
    small: Entry, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**SMALL, "text_cfg": {**SMALL["text_cfg"], **wrong}}))
    backend = OpenClip(Placement(cache_dir=tmp_path / "cache", offline=True))
    with pytest.raises(BadCheckpoint, match=r"cannot make a tokenizer as its text_cfg says: \{"):
        backend.load(Entry(id="x", architecture=str(file), checkpoint=small.checkpoint))


def test_a_refusal_without_words_gets_some(backend: OpenClip, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    text = {**SMALL["text_cfg"], "pool_type": "nonsense"}
    file.write_text(json.dumps({**SMALL, "text_cfg": text}))
    with pytest.raises(LoadFailed, match=r"cannot be built: open_clip refuses a value"):
        backend.check(Entry(id="x", architecture=str(file)))


def test_a_config_that_makes_no_model_is_refused(backend: OpenClip, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**SMALL, "vision_cfg": {"image_size": 64, "widht": 3}}))
    with pytest.raises(LoadFailed, match="widht"):
        backend.check(Entry(id="x", architecture=str(file)))


def test_no_file_and_no_tag_says_what_would_do(backend: OpenClip) -> None:
    entry = Entry(id="ViT-B-32/mine", architecture="ViT-B-32", tag="mine")
    for step in (backend.check, backend.load):
        with pytest.raises(WeightsUnavailable, match="openai"):
            step(entry)


# The hub


def test_offline_never_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_answers", None)
    backend = OpenClip(Placement(cache_dir=tmp_path, offline=True))
    entry = Entry(id="ViT-B-32/openai", architecture="ViT-B-32", tag="openai")
    for step in (backend.check, backend.load):
        with pytest.raises(WeightsUnavailable, match="offline is set"):
            step(entry)


def test_a_hub_that_does_not_answer_is_one_sentence(
    backend: OpenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "PATIENCE_S", 0.1)
    monkeypatch.setattr(hub, "address", lambda source: "https://192.0.2.1/")  # nobody, by design
    with pytest.raises(WeightsUnavailable, match=r"192\.0\.2\.1, which is away; put"):
        backend.load(Entry(id="ViT-B-32/openai", architecture="ViT-B-32", tag="openai"))


def test_weights_are_no_cure_for_text_files_that_are_missing(
    backend: OpenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_answers", lambda _: False)
    entry = Entry(id="", architecture="ViT-B-16-SigLIP", tag="webli")
    with pytest.raises(WeightsUnavailable, match=r"^text files of .*SigLIP .* is away; name"):
        backend.check(entry)


def test_an_earlier_download_is_used_without_asking(cache: Path, models: Path) -> None:
    snapshot = cache / "hub" / "models--timm--vit_base_patch32_clip_224.openai"
    (snapshot / "snapshots" / "abc").mkdir(parents=True)
    (snapshot / "refs").mkdir()
    (snapshot / "refs" / "main").write_text("abc")
    (snapshot / "snapshots" / "abc" / "open_clip_model.safetensors").symlink_to(
        models / "ViT-B-32" / "openai.safetensors"
    )
    backend = OpenClip(Placement(cache_dir=cache, offline=True))
    entry = Entry(id="ViT-B-32/openai", architecture="ViT-B-32", tag="openai")
    assert backend.check(entry) == backend.load(entry).footprint().host_bytes


# What no catalogue lists


def test_an_id_of_the_registry_is_described(backend: OpenClip) -> None:
    entry = backend.describe("ViT-B-16/openai")
    assert entry is not None
    assert (entry.architecture, entry.tag, entry.dimension, entry.input_size) == (
        "ViT-B-16",
        "openai",
        512,
        224,
    )


def test_a_file_under_models_dir_makes_an_id(models: Path, tmp_path: Path) -> None:
    (models / "ViT-B-32" / "mine.pt").touch()
    backend = OpenClip(Placement(models_dir=models, cache_dir=tmp_path))
    assert backend.describe("ViT-B-32/mine") is not None


@pytest.mark.parametrize(
    "model_id", ["", "/", "nonsense", "nonsense/openai", "ViT-B-32/none", "../ViT-B-32/openai"]
)
def test_other_ids_are_not_described(backend: OpenClip, model_id: str) -> None:
    assert backend.describe(model_id) is None


def test_a_tag_too_long_for_a_file_is_not_described(models: Path, tmp_path: Path) -> None:
    backend = OpenClip(Placement(models_dir=models, cache_dir=tmp_path))
    assert backend.describe(f"ViT-B-32/{'長' * 100}") is None


# Memory


def test_a_model_on_a_cpu_holds_its_weights_in_host_memory_wherever_it_is_said_to_be(
    backend: OpenClip, small: Entry
) -> None:
    model = backend.load(small)
    want = images(model, PHOTOS)
    size = backend.check(small)
    for move in (model.lift, model.lower, model.lift):
        move()
        assert (model.footprint().host_bytes, model.footprint().device_bytes) == (size, 0)
    assert np.array_equal(images(model, PHOTOS), want)


def test_an_unloaded_model_lets_go_of_its_file(
    backend: OpenClip, small: Entry, tmp_path: Path
) -> None:
    entry = saved(small, tmp_path / "weights.safetensors")
    model = backend.load(entry)
    images(model, PHOTOS)
    assert str(tmp_path / "cache") in Path("/proc/self/maps").read_text()
    module = model.module
    model.unload()
    gc.collect()
    assert str(tmp_path / "cache") not in Path("/proc/self/maps").read_text()
    tensors = chain(module.parameters(), module.buffers())
    assert all(tensor.is_meta for tensor in tensors)


def test_a_batch_that_does_not_fit_is_a_memory_error(
    model: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.module, "encode_image", full)
    with pytest.raises(MemoryError):
        images(model, PHOTOS)
