"""timm's own functions are the yardstick: the same file, the same pictures, the same vectors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from timm.data import create_transform, resolve_model_data_config

from api_client.wire.errors import BadCheckpoint, ImageUnreadable, LoadFailed, WeightsUnavailable
from api_client.wire.messages import Kind
from worker.backends import hub
from worker.backends.base import Placement
from worker.backends.check import Subject, pytest_generate_tests  # noqa: F401
from worker.backends.registry import Families
from worker.backends.simple import SimpleBackend
from worker.backends.timm import Timm
from worker.catalogue import Entry

# DINOv2's shape, a small one: registers of its own code, GELU, layer scale, its mean and crop.
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 98}
NAME = "vit_small_patch14_dinov2.lvd142m"
PHOTOS = [Image.fromarray(make()) for make in (data.astronaut, data.coffee, data.camera)]


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(7)
    model = timm.create_model(NAME, num_classes=0, **SMALL).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def entry(theirs, tmp_path_factory):
    file = tmp_path_factory.mktemp("dinov2") / "lvd142m.safetensors"
    save_file(theirs.state_dict(), file)
    architecture, _, tag = NAME.partition(".")
    return Entry(
        f"timm/{NAME}",
        backend="timm",
        architecture=architecture,
        tag=tag,
        checkpoint=file,
        kinds=(Kind.IMAGE,),
        options=SMALL,
    )


def family(**placement):
    return SimpleBackend(Timm, Placement(offline=True, **placement))


def rows(model, pictures=PHOTOS):
    return model.run(Kind.IMAGE, [model.prepare_image(picture) for picture in pictures])


def cosines(a, b):
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def test_it_answers_as_timm_does(entry, theirs):
    config = resolve_model_data_config(theirs, args={"img_size": 98})
    transform = create_transform(**config, is_training=False)
    with torch.inference_mode():
        pictures = [transform(photo.convert("RGB")) for photo in PHOTOS]
        want = theirs(torch.stack(pictures)).numpy()
    model = family().load(entry)
    assert model.traits.dimension == 48
    assert model.traits.input_size == 98
    assert cosines(rows(model), want).min() >= 0.99999


def test_it_keeps_the_contract(clipyard_check, entry):
    clipyard_check(Subject(family(), entry, Placement(offline=True)))


def test_weights_under_models_dir_need_no_checkpoint(entry, tmp_path):
    folder = tmp_path / entry.architecture
    folder.mkdir()
    (folder / "lvd142m.safetensors").symlink_to(entry.checkpoint)
    found = Entry("x/y", architecture=entry.architecture, tag=entry.tag, options=SMALL)
    model = family(models_dir=tmp_path).load(found)
    assert model.traits.fingerprint == family().load(entry).traits.fingerprint


def test_options_that_change_the_vectors_make_another_space(entry):
    other = replace(entry, options={**SMALL, "act_layer": "relu"})
    models = [family().load(each) for each in (entry, other)]
    assert cosines(*map(rows, models)).max() < 0.999
    assert models[0].traits.fingerprint != models[1].traits.fingerprint


def test_a_classifier_in_the_file_is_left_out(tmp_path):
    small = {"embed_dim": 48, "depth": 1, "num_heads": 3, "img_size": 32}
    classifier = timm.create_model("vit_tiny_patch16_224", num_classes=5, **small)
    save_file(classifier.state_dict(), tmp_path / "a.safetensors")
    found = Entry(
        "x/y",
        architecture="vit_tiny_patch16_224",
        checkpoint=tmp_path / "a.safetensors",
        options=small,
    )
    assert rows(family().load(found)).shape == (3, 48)


def test_what_comes_before_a_classifier_is_left_out_with_it(tmp_path):
    architecture = "levit_128s"
    theirs = timm.create_model(architecture).eval()
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    found = Entry("x/y", architecture=architecture, checkpoint=tmp_path / "a.safetensors")
    model = family().load(found)
    theirs.reset_classifier(0)
    transform = create_transform(**resolve_model_data_config(theirs), is_training=False)
    with torch.inference_mode():
        want = theirs(transform(PHOTOS[0])[None]).numpy()
    assert cosines(rows(model, PHOTOS[:1]), want).min() >= 0.99999


def test_a_network_with_layers_behind_its_pool_answers_in_their_dimension(tmp_path):
    architecture = "mobilenetv3_small_050"
    file = tmp_path / "a.safetensors"
    save_file(timm.create_model(architecture, num_classes=0).state_dict(), file)
    model = family().load(Entry("x/y", architecture=architecture, checkpoint=file))
    assert model.traits.dimension == rows(model).shape[1] == 1024


@pytest.mark.parametrize(
    "name",
    [
        "flexivit_small.1200ep_in1k",
        "vit_base_patch16_radio_v3.c_radio",
        "vit_so400m_patch16_radio_v4.c_radio",
        "vit_tiny_patch16_224.augreg_in21k",
    ],
)
def test_positions_are_resized_as_timm_does_for_these_weights(tmp_path, name):
    small = {"embed_dim": 48, "depth": 1, "num_heads": 3}
    larger = timm.create_model(name, num_classes=0, img_size=80, **small)
    torch.nn.init.normal_(larger.pos_embed)
    save_file(larger.state_dict(), file := tmp_path / "a.safetensors")
    options = {**small, "img_size": 48}
    overlay = {"file": str(file), "custom_load": False}
    theirs = timm.create_model(
        name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **options
    )
    architecture, _, tag = name.partition(".")
    found = Entry("x/y", architecture=architecture, tag=tag, checkpoint=file, options=options)
    model = family().load(found)
    assert torch.equal(model.module.pos_embed, theirs.pos_embed)


def test_weights_of_another_architecture_are_refused(entry, tmp_path):
    save_file({"blocks.0.norm1.weight": torch.zeros(3)}, tmp_path / "a.safetensors")
    wrong = Entry(
        "x/y",
        architecture=entry.architecture,
        tag=entry.tag,
        checkpoint=tmp_path / "a.safetensors",
        options=SMALL,
    )
    for step in (family().check, family().load):
        with pytest.raises(BadCheckpoint, match="another architecture"):
            step(wrong)


@pytest.mark.parametrize("wrong", [{"architecture": "vit_nonesuch"}, {"options": {"widht": 3}}])
def test_what_timm_cannot_build_is_one_sentence(entry, wrong):
    fields = {"architecture": entry.architecture, "tag": entry.tag, **wrong}
    with pytest.raises(LoadFailed, match="timm cannot build vit_"):
        family().check(Entry("x/y", **fields))


@pytest.mark.parametrize("name", ["local-dir:{0}", "{0}", "hf-hub:timm/resnet18.a1_in1k"])
def test_a_folder_is_no_architecture(tmp_path, name):
    timm.models.save_for_hf(timm.create_model("test_vit"), tmp_path)
    architecture, checkpoint = name.format(tmp_path), tmp_path / "pytorch_model.bin"
    with pytest.raises(LoadFailed, match="no such architecture; name one"):
        family().check(Entry("x/y", architecture=architecture, checkpoint=checkpoint))


@pytest.mark.parametrize(
    "wrong",
    [
        {"in_chans": 1},
        {"img_size": [98, 70]},
        {"pretrained_cfg_overlay": {"interpolation": "nonsense"}},
        {"pretrained_cfg_overlay": {"mean": [0.5, 0.5]}},
        {"pretrained_cfg_overlay": {"std": [0.5, 0, 0.5]}},
    ],
    ids=str,
)
def test_pictures_that_timm_could_not_prepare_so_are_refused_before_loading(wrong):
    options = {"embed_dim": 48, "depth": 1, "num_heads": 3, **wrong}
    model = Timm(Entry("x/y", architecture="vit_tiny_patch16_224", options=options), Placement())
    with pytest.raises(LoadFailed, match=r"cannot prepare pictures .* for vit_tiny.* with \{"):
        model._refuse_maps(model._without_weights().to("meta"))


def test_a_network_that_answers_with_its_stages_is_refused_before_it_is_loaded():
    entry = Entry("x/y", architecture="test_vit", options={"features_only": True})
    model = Timm(entry, Placement(offline=True))
    with pytest.raises(LoadFailed, match=r"answers a picture with several maps.*that pools"):
        model._refuse_maps(model._without_weights().to("meta"))


def test_offline_without_weights_says_what_would_do(tmp_path):
    families = Families(Placement(offline=True, cache_dir=tmp_path))
    described = families.describe(f"timm/{NAME}")
    assert described is not None
    assert (described.backend, described.kinds) == ("timm", (Kind.IMAGE,))
    for step in (families.check, families.load):
        with pytest.raises(WeightsUnavailable, match=r"offline is set.*safetensors"):
            step(described)
    assert families.describe("timm/nonesuch.none") is None


def test_timms_hub_is_asked_when_it_may_be(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "_answers", lambda url: asked.append(url))
    described = Timm.describe(f"timm/{NAME}")
    assert described is not None
    with pytest.raises(WeightsUnavailable, match="away"):
        SimpleBackend(Timm, Placement(cache_dir=Path(tmp_path))).load(described)
    assert asked == [hub.constants.ENDPOINT]


def test_another_version_of_a_class_answers_in_another_space(entry):
    class Newer(Timm):
        about = replace(Timm.about, version="2")

    Newer.__qualname__ = Timm.__qualname__
    models = [SimpleBackend(kind, Placement(offline=True)).load(entry) for kind in (Timm, Newer)]
    assert models[0].traits.fingerprint != models[1].traits.fingerprint


def test_a_strip_of_which_a_border_leaves_nothing_is_unreadable(entry):
    options = {**SMALL, "pretrained_cfg_overlay": {"crop_mode": "border"}}
    model = family().load(replace(entry, options=options))
    with pytest.raises(ImageUnreadable, match="3000x2 cannot be resized"):
        model.prepare_image(Image.new("RGB", (3000, 2)))


def test_an_encoder_that_answers_with_a_map_is_refused_before_it_is_loaded():
    model = Timm(Entry("x/y", architecture="qwen3_vit_88m_enc"), Placement(offline=True))
    with pytest.raises(LoadFailed, match=r"answers a picture with 576x1024 numbers.*that pools"):
        model._refuse_maps(model._without_weights().to("meta"))


def test_an_architecture_without_weights_anywhere_asks_nobody(tmp_path):
    unknown = Entry("x/y", architecture="test_vit4")
    with pytest.raises(WeightsUnavailable, match="no hub has them"):
        SimpleBackend(Timm, Placement(cache_dir=tmp_path)).load(unknown)
