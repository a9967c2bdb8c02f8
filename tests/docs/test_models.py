"""The page about models is true: every example is carried out as it is written."""

import json
import re
import shlex
import sys
from dataclasses import fields, replace
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from api_client.wire.errors import WeightsUnavailable
from api_client.wire.messages import Kind
from tests.worker.backends.ollama_double import ollama_double
from tests.worker.backends.tiny_sentences import write_sentences
from worker.backends.base import Placement
from worker.backends.check import main
from worker.backends.registry import BUILT_IN, Families
from worker.catalogue import Catalogue, Entry

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    """What the examples name: a catalogue of all entries, and their weights, seeded."""
    made = tmp_path_factory.mktemp("mine")
    (made / "catalogue.toml").write_text("\n".join(blocks("toml")))
    (made / "products.safetensors").symlink_to(models / "ViT-B-32.safetensors")
    (made / "small").mkdir()
    [config] = blocks("json")
    (made / "small" / "open_clip_config.json").write_text(config)
    torch.manual_seed(7)
    small = open_clip.CLIP(**json.loads(config)["model_cfg"])
    save_file(small.state_dict(), made / "small" / "open_clip_model.safetensors")
    dinov2 = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=518)
    save_file(dinov2.state_dict(), made / "dinov2.safetensors")
    write_sentences(made / "tiny")
    return made


@pytest.fixture
def catalogue(folder):
    return Catalogue.read(folder / "catalogue.toml")


@pytest.fixture
def families(folder):
    return Families(Placement(offline=True, cache_dir=folder / "cache"))


def picture(model):
    return model.run(Kind.IMAGE, [model.prepare_image(Image.new("RGB", (90, 60), "red"))])


def test_a_fine_tune_is_found_by_its_alias_and_can_be_loaded(families, catalogue):
    entry = catalogue["products"]
    assert families.check(entry) > 600_000_000  # bytes: every tensor has its place


def test_an_entry_at_rest_as_int8_is_a_space_of_its_own(families, catalogue):
    model = families.load(catalogue["ViT-B-32/products-int8"])
    model.lift()
    assert model.traits.fingerprint.endswith("+int8")
    assert picture(model).shape == (1, 512)
    model.unload()


@pytest.mark.parametrize(("model_id", "shape"), [("small/mine", (1, 32)), ("dinov2/224", (1, 384))])
def test_an_entry_embeds_pictures(families, catalogue, model_id, shape):
    entry = catalogue[model_id]
    assert families.check(entry) > 0
    model = families.load(entry)
    assert picture(model).shape == shape
    model.unload()


def test_an_entry_embeds_texts_through_ollama(families, catalogue):
    entry = catalogue["texts/long"]
    with ollama_double() as server:
        model = families.load(replace(entry, options={**entry.options, "host": server.url}))
        assert model.run(Kind.TEXT, [model.prepare_text("a")]).shape == (1, 1024)
        model.unload()


def test_an_entry_embeds_texts_with_a_folder_of_sentence_transformers(families, catalogue):
    model = families.load(catalogue["texts/tiny"])
    assert model.run(Kind.TEXT, [model.prepare_text("a red circle")]).shape == (1, 32)
    model.unload()


def test_every_entry_is_tried_here(catalogue):
    clip = {"ViT-B-32/products", "ViT-B-32/products-int8", "small/mine"}
    assert {entry.id for entry in catalogue} == clip | {"dinov2/224", "texts/long", "texts/tiny"}


def test_the_class_is_allowed_by_the_setting_and_passes_the_kit(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_models.py").write_text(blocks("python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    [allowed] = re.findall(r"CLIPYARD_BACKENDS='(.*?)'", PAGE)
    monkeypatch.setenv("CLIPYARD_BACKENDS", allowed)
    monkeypatch.setenv("CLIPYARD_DEVICE", "cpu")
    [command] = blocks("sh")
    python, dash_m, module, *argv = shlex.split(command)
    assert (python, dash_m, sys.modules[module].main) == ("python", "-m", main)
    assert main(argv) == 0, capsys.readouterr().out
    families = Families(Placement(), json.loads(allowed))
    families.discover()
    assert families.auto_started() == ("letters/english",)


def test_a_torch_module_embeds_pictures_with_weights_of_its_own_or_from_a_file(
    tmp_path, monkeypatch
):
    (tmp_path / "my_torch_models.py").write_text(blocks("python")[1])
    monkeypatch.syspath_prepend(tmp_path)
    families = Families(Placement(), ["linear=my_torch_models:Linear"])
    [entry] = families.discover()
    file = tmp_path / "it.safetensors"
    save_file({"1.weight": torch.ones(16, 3072), "1.bias": torch.ones(16)}, file)
    for one in (entry, replace(entry, checkpoint=file)):
        model = families.load(one)
        model.lift()
        assert picture(model).shape == (1, 16)
        model.unload()
    with pytest.raises(WeightsUnavailable):
        families.load(replace(entry, checkpoint=tmp_path / "nothing.safetensors"))


def test_every_field_of_an_entry_has_a_line():
    [table] = re.findall(r"^\| of an entry .*?\n\n", PAGE, re.MULTILINE | re.DOTALL)
    told = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split(" | ")[0])
    }
    assert told == {field.name for field in fields(Entry)} - {"id"}


def test_every_family_that_ships_has_a_line():
    assert set(re.findall(r"^\| (\w+) \|", PAGE, re.MULTILINE)) - {"family"} == set(BUILT_IN)


@pytest.mark.parametrize("model_id", re.findall(r"^\| \w+ \| `([^`]+)`", PAGE, re.MULTILINE))
def test_an_id_that_needs_no_entry_is_described(families, model_id):
    described = families.describe(model_id)
    assert described is not None
    assert described.id == model_id
