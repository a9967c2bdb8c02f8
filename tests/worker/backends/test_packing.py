"""Weights that rest as int8: the codec, a model that goes down and up, and who may not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from api_client.quickstart import shapes
from api_client.wire.errors import BackendFailed, LoadFailed
from api_client.wire.messages import Kind
from worker.backends import residence, torch_model
from worker.backends.base import About, Placement
from worker.backends.packing import packed
from worker.backends.registry import Families
from worker.backends.residence import Tiers
from worker.backends.simple import SimpleBackend
from worker.backends.torch_model import FAITHFUL, TorchModel
from worker.catalogue import BUILT_IN, Catalogue, Entry

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 96), (32, 3, 8, 8)])
def test_a_weight_moves_by_half_a_step_of_its_channel_at_most(shape, dtype):
    torch.manual_seed(7)
    weights = torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, *[None] * (len(shape) - 1)]
    stored = packed(weights.to(dtype))
    restored = stored.restored()
    assert (restored.dtype, restored.shape) == (dtype, weights.shape)
    assert stored.nbytes < 0.3 * weights.nbytes
    step = weights.abs().flatten(1).amax(1) / 127
    moved = (restored.float() - weights).abs().flatten(1).amax(1)
    assert (moved <= step * (0.5 + 127 * torch.finfo(dtype).eps)).all()


@pytest.mark.parametrize(
    "tensor", [torch.ones(8192), torch.ones(8, 8), torch.ones(128, 128, dtype=torch.int64)]
)
def test_what_is_small_or_has_no_channels_stays_as_it_is(tensor):
    assert packed(tensor).restored() is tensor


def test_a_channel_of_zeros_stays_one():
    weights = torch.ones(64, 64)
    weights[3] = 0
    assert torch.equal(packed(weights).restored(), weights)


def tensors(module):
    return [*module.parameters(), *module.buffers()]


def test_a_lift_restores_the_same_weights_every_time():
    torch.manual_seed(7)
    module = nn.Sequential(nn.Linear(128, 128), nn.LayerNorm(128)).requires_grad_(False)
    module.register_buffer("mask", torch.full((128, 128), float("-inf")).triu(1))
    tiers, size = Tiers(module, CPU), sum(tensor.nbytes for tensor in tensors(module))
    tiers.lift()
    tiers.pack()
    first = [tensor.clone() for tensor in tensors(module)]
    assert torch.equal(module.mask, torch.full((128, 128), float("-inf")).triu(1))
    for _ in range(2):
        tiers.lower()
        rests = tiers.footprint()
        assert rests.device_bytes == 0
        assert rests.host_bytes < 0.3 * size + module.mask.nbytes
        tiers.lift()
        assert tiers.footprint().device_bytes == size
        assert all(map(torch.equal, tensors(module), first))
    tiers.unload()
    assert all(tensor.is_meta for tensor in tensors(module))


# A model of a catalogue, on a worker with and without a device of its own.


@pytest.fixture
def demo():
    return replace(Catalogue.read(BUILT_IN)["shapes/demo"], id="shapes/int8", at_rest="int8")


@pytest.fixture
def families(tmp_path):
    return Families(Placement(offline=True, cache_dir=tmp_path))


@pytest.fixture
def with_device(monkeypatch):
    """Host memory stands for the device; what moves there and back is real."""
    monkeypatch.setattr(torch_model, "residence", lambda module, device: Tiers(module, CPU))


def rows(model):
    pictures = [picture for _, picture in shapes.collection(8, seed=3)]
    images = model.run(Kind.IMAGE, [model.prepare_image(picture) for picture in pictures])
    texts = model.run(Kind.TEXT, [model.prepare_text(text) for text in shapes.CAPTIONS[:8]])
    return np.concatenate([images, texts])


def lifted(families, entry):
    model = families.load(entry)
    model.lift()
    return model


@pytest.mark.usefixtures("with_device")
def test_a_packed_model_goes_down_small_and_comes_back_the_same(families, demo):
    model = lifted(families, demo)
    first, size = rows(model), model.footprint().device_bytes
    model.lower()
    assert model.footprint().host_bytes < 0.3 * size
    model.lift()
    np.testing.assert_array_equal(rows(model), first)
    model.unload()


def test_its_vectors_are_the_same_without_a_device_and_near_to_what_they_were(
    families, demo, monkeypatch
):
    model, plain = lifted(families, demo), lifted(families, replace(demo, at_rest=None))
    ours, theirs = rows(model), rows(plain)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    assert FAITHFUL <= ((ours * theirs).sum(1) / norms).min() < 1
    monkeypatch.setattr(torch_model, "residence", lambda module, device: Tiers(module, CPU))
    np.testing.assert_array_equal(rows(lifted(families, demo)), ours)


def test_the_fingerprint_tells(families, demo):
    packed, plain = families.load(demo), families.load(replace(demo, at_rest=None))
    assert packed.traits.fingerprint == f"{plain.traits.fingerprint}+int8"


@pytest.mark.usefixtures("with_device")
def test_out_of_memory_while_packing_leaves_it_as_it_was(families, demo, monkeypatch):
    model, done = families.load(demo), []
    want = rows(lifted(families, demo))

    def short(tensor):
        done.append(tensor)
        if len(done) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return packed(tensor)

    monkeypatch.setattr(residence, "packed", short)
    with pytest.raises(MemoryError):
        model.lift()
    assert model.footprint().device_bytes == 0
    model.lift()
    np.testing.assert_array_equal(rows(model), want)


class Lopsided(TorchModel):
    """One weight of each channel is so large that 127 steps leave nothing of the others."""

    about = About(at_rest=("int8",))
    dimension = 64

    def build(self):
        torch.manual_seed(7)
        module = nn.Linear(256, 64)
        module.weight.data[:, 0] = 1e4
        return module

    def embed_texts(self, texts):
        codes = [[ord(text[i % len(text)]) / 99 for i in range(256)] for text in texts]
        codes = torch.tensor(codes)
        codes[:, 0] = 0
        return self.module(codes).numpy()


def test_a_model_that_does_not_stand_it_is_refused_with_the_cosine():
    family = SimpleBackend(Lopsided, Placement())
    model = family.load(Entry("mine/lopsided", at_rest="int8"))
    with pytest.raises(LoadFailed, match=r"mine/lopsided cannot rest as int8: .*0\.999 is the lea"):
        model.lift()
    family.load(Entry("mine/lopsided")).lift()


def test_a_family_that_cannot_says_so(families):
    entry = Entry("fake/one", backend="fake", at_rest="int8")
    for step in (families.check, families.load):
        with pytest.raises(BackendFailed, match="fake cannot hold fake/one at rest as int8"):
            step(entry)
