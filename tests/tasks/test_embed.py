import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from celery.exceptions import Reject

from api_client.wire.errors import BadRequest, Expired, SpaceMismatch
from api_client.wire.messages import AUTO, EmbedBatch, Kind, PathRef, Priority
from tasks import embed
from worker import runtime
from worker.backends.base import Footprint, Placement, Tier, Traits
from worker.catalogue import Catalogue, Entry
from worker.datapath.batcher import Rows
from worker.delivery.answers import Call
from worker.residency.ledger import Ledger
from worker.residency.memory import Bytes, Memory


@pytest.fixture
def _here(monkeypatch):
    """A worker with a model for each kind, no slot to lease, and an unknown current model."""
    here = SimpleNamespace(
        catalogue=Catalogue(Entry(f"only/{kind}", kinds=(kind,)) for kind in Kind),
        tracker=SimpleNamespace(current=lambda: "mistyped"),
        slots=SimpleNamespace(view=lambda: (), lease=lambda *_, **__: nullcontext()),
        settings=SimpleNamespace(keep_models=True),
        families=SimpleNamespace(check=lambda entry: 0),
        memory=Memory("cpu"),
        ledger=Ledger(),
    )
    monkeypatch.setattr(runtime, "here", lambda: here)


@pytest.mark.usefixtures("_here")
def test_a_model_that_does_not_embed_the_kind_is_refused_before_it_is_leased():
    call = Call("id", EmbedBatch(model="only/image", texts=("a",)), 0.0)
    with pytest.raises(BadRequest, match="only/image does not embed texts"):
        embed.embed_batch.run.__wrapped__(call)


@pytest.mark.usefixtures("_here")
def test_a_model_that_answers_in_another_space_than_asked_for_embeds_nothing():
    model = SimpleNamespace(traits=Traits(dimension=2, kinds=(Kind.TEXT,), fingerprint="ours"))
    runtime.here().slots.lease = lambda *_, **__: nullcontext(model)
    request = EmbedBatch(model="only/text", texts=("a",), fingerprint="another")
    with pytest.raises(SpaceMismatch, match="in the space ours here, another was asked for"):
        embed.embed_batch.run.__wrapped__(Call("id", request, 0.0))


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(("keeps", "keep_alive_s"), [(True, 60.0), (False, 0.0)])
def test_a_model_that_has_answered_counts_as_used_and_stays_only_where_models_are_kept(
    keeps, keep_alive_s
):
    here, leased, used = runtime.here(), [], []
    model = SimpleNamespace(
        traits=Traits(dimension=2, kinds=(Kind.TEXT,), fingerprint="f"), prepare_text=str
    )

    def lease(entry, **options):
        leased.append(options["keep_alive_s"])
        return nullcontext(model)

    here.slots.lease, here.tracker.used = lease, used.append
    here.settings.keep_models = keeps
    here.batcher = SimpleNamespace(embed=lambda *_, **__: Rows([np.ones(2, np.float32)]))
    here.node, here.placement = "w@here", Placement()
    request = EmbedBatch(model="only/text", texts=("a",), keep_alive_s=60.0)
    answer, _ = embed.embed_batch.run.__wrapped__(Call("id", request, 0.0))
    assert answer.model == "only/text"
    assert used == [here.catalogue["only/text"]]
    assert leased == [keep_alive_s]


@pytest.mark.usefixtures("_here")
def test_how_long_and_how_urgently_a_caller_waits_is_known_wherever_it_is_waited_for(monkeypatch):
    here, slots, batcher = runtime.here(), {}, {}
    model = SimpleNamespace(
        traits=Traits(dimension=2, kinds=(Kind.TEXT,), fingerprint="f"), prepare_text=str
    )

    def lease(_, **options):
        slots.update(options)
        return nullcontext(model)

    def run(*_, **options):
        batcher.update(options)
        raise Expired("late")

    here.slots.lease, here.batcher = lease, SimpleNamespace(embed=run)
    monkeypatch.setattr(embed, "canceller", lambda: lambda: "withdrawn")
    request = EmbedBatch(
        model="only/text", texts=("a",), priority=Priority.BULK, deadline=time.time() + 60
    )
    with pytest.raises(Expired):
        embed.embed_batch.run.__wrapped__(Call("id", request, 0.0))
    assert 0 < slots["patience_s"] < 60
    assert (batcher["deadline"], batcher["priority"]) == (request.deadline, Priority.BULK)
    assert batcher["cancelled"]() == "withdrawn"


@pytest.mark.usefixtures("_here")
def test_a_request_whose_place_was_taken_gives_way_before_anything_is_embedded(monkeypatch):
    def give_way():
        raise Reject("others have its place", requeue=True)

    monkeypatch.setattr(embed, "give_way", give_way)
    with pytest.raises(Reject):
        embed.embed_batch.run.__wrapped__(
            Call("id", EmbedBatch(model="only/text", texts=("a",)), 0.0)
        )


@pytest.mark.usefixtures("_here")
def test_auto_chooses_among_the_others_where_nobody_knows_the_current_model():
    assert embed._choose(EmbedBatch(model=AUTO, texts=("a",))).entry.id == "only/text"


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("device", [None, Bytes(10, 10)])
def test_auto_passes_over_a_model_that_was_measured_to_take_more_than_there_is(device):
    here = runtime.here()
    here.memory.device = lambda: device
    too_much = here.memory.host().total + 1 if device is None else 11
    small, big = (Entry(model_id, kinds=(Kind.TEXT,)) for model_id in ("small", "big"))
    here.catalogue = Catalogue([big, small])
    fits_elsewhere = Footprint(device_bytes=1, host_bytes=1)
    seen = {"host_bytes" if device is None else "device_bytes": too_much}
    here.ledger.saw("big", replace(fits_elsewhere, **seen))
    assert embed._choose(EmbedBatch(model=AUTO, texts=("a",))).entry.id == "small"


@pytest.mark.usefixtures("_here")
def test_auto_passes_over_a_model_that_does_not_embed_what_its_entry_says():
    here = runtime.here()
    here.catalogue = Catalogue([Entry("says/both"), *here.catalogue])
    assert embed._choose(EmbedBatch(model=AUTO, texts=("a",))).entry.id == "says/both"
    traits = Traits(dimension=2, kinds=(Kind.IMAGE,), fingerprint="f")
    held = SimpleNamespace(model_id="says/both", tier=Tier.DEVICE, traits=traits)
    here.slots.view = lambda: (held,)
    assert embed._choose(EmbedBatch(model=AUTO, texts=("a",))).entry.id == "only/text"


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(("also", "chosen"), [(None, "says/both"), (Kind.TEXT, "clip")])
def test_auto_passes_over_a_model_that_only_sees_where_a_text_follows(also, chosen):
    here = runtime.here()
    eyes, says, clip = Entry("eyes", kinds=(Kind.IMAGE,)), Entry("says/both"), Entry("clip")
    here.catalogue = Catalogue([eyes, says, clip])
    traits = Traits(dimension=2, kinds=(Kind.IMAGE,), fingerprint="f")
    held = SimpleNamespace(model_id="says/both", tier=Tier.DEVICE, traits=traits)
    here.slots.view = lambda: (held,)
    request = EmbedBatch(model=AUTO, images=(PathRef(path="a.jpg"),), also=also)
    assert embed._choose(request).entry.id == chosen
