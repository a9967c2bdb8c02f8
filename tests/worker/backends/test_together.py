"""Vision and text models of several families share two slots, and sweeps move all of them."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from api_client.wire.messages import Kind, Priority
from tests.worker.backends.ollama_double import ollama_double
from worker.backends.base import Placement
from worker.backends.registry import Families
from worker.catalogue import BUILT_IN, Catalogue, Entry
from worker.datapath.batcher import Batcher
from worker.residency.ledger import Ledger
from worker.residency.memory import Memory
from worker.residency.slots import Limits, Slots
from worker.residency.sweeps import Timeouts, View
from worker.residency.sweeps import sweep as decide

A_MINUTE = Timeouts(ram_s=60)
TINY = {"embed_dim": 48, "depth": 1, "num_heads": 3, "img_size": 32}


@pytest.fixture
def entries(tmp_path):
    torch.manual_seed(7)
    encoder = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    save_file(encoder.state_dict(), tmp_path / "tiny.safetensors")
    listed = Catalogue.read(BUILT_IN)
    with ollama_double() as server:
        text = replace(listed["bge-m3"], options={"host": server.url})
        vision = Entry(
            "timm/tiny",
            backend="timm",
            architecture="vit_tiny_patch16_224",
            checkpoint=tmp_path / "tiny.safetensors",
            kinds=(Kind.IMAGE,),
            options=TINY,
        )
        yield server, [listed["shapes/demo"], text, vision, Entry("fake/one", backend="fake")]


def test_four_families_take_turns_in_two_slots(entries, tmp_path):
    server, listed = entries
    _, text, *_ = listed
    families = Families(Placement(offline=True, cache_dir=tmp_path))
    memory, events, now = Memory("cpu"), [], [0.0]
    slots = Slots(
        check=families.check,
        load=families.load,
        limits=Limits(slots=2),
        ledger=Ledger(device=memory.device, host=memory.host),
        unified=True,
        clock=lambda: now[0],
        on_event=events.append,
    )

    def sweep():
        view = View(slots.view(), now=now[0], unified=True, own={text.id: A_MINUTE})
        return slots.apply(decide(view))

    batcher = Batcher(batch_size=8, decode_threads=2)
    first = {}
    for entry in [*listed, *listed]:
        with slots.lease(entry) as model:
            for kind in model.traits.kinds:
                vectors = _embed(batcher, model, kind, entry.id)
                assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
                np.testing.assert_allclose(
                    vectors, first.setdefault((entry.id, kind), vectors), atol=1e-5
                )
        assert len(slots.view()) <= 2
    assert {event.model for event in events if event.kind == "evicted"} == {e.id for e in listed}
    with slots.lease(text):
        assert server.loaded != {}
    now[0] += 61
    assert [(move.model_id, move.reason) for move in sweep()] == [(text.id, "idle in RAM for 61 s")]
    assert server.loaded == {}
    assert len(slots.view()) == 1
    now[0] += 1800
    sweep()
    assert slots.view() == ()
    slots.close()
    batcher.close()


def _embed(batcher, model, kind, model_id):
    texts = ["a red circle", "a blue square"]
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    return batcher.embed(
        model,
        kind,
        texts if kind is Kind.TEXT else pictures,
        model.prepare_text if kind is Kind.TEXT else model.prepare_image,
        model_id=model_id,
        priority=Priority.BULK,
    ).vectors
