"""embed_batch: pictures or texts in, vectors out."""

import time
from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np

from api_client.wire import correlation, names
from api_client.wire.errors import BadRequest, ClipyardError, SpaceMismatch
from api_client.wire.messages import AUTO, BlobRef, EmbedBatch, Embedded, Failure, Kind, Timings
from worker import runtime
from worker.backends.base import Model
from worker.catalogue import Entry
from worker.choice import Candidate, Choice, Wish, ranked
from worker.datapath.batcher import Rows
from worker.delivery.answers import Answer, Call, answering
from worker.delivery.pool import canceller, give_way


@answering(names.EMBED_BATCH, EmbedBatch)
def embed_batch(call: Call[EmbedBatch]) -> Answer:
    here, request = runtime.here(), call.request
    # Before the lease: a typo must evict nobody.
    if request.model == AUTO:
        choice = _choose(request)
    else:
        choice = Choice(here.catalogue[request.model or here.tracker.current()], "")
    entry = choice.entry
    _refuse_another_kind(request, entry.kinds, entry.id)
    begun = time.monotonic()
    keep_alive_s = request.keep_alive_s if here.settings.keep_models else 0.0
    # Nobody is pushed out, and no thread held, for a caller who will have gone by then.
    with here.slots.lease(
        entry, keep_alive_s=keep_alive_s, patience_s=call.left_s, asked_by=request.asked_by
    ) as model:
        give_way()
        loaded = time.monotonic()
        _refuse_another_kind(request, model.traits.kinds, entry.id)  # an entry may say too much
        _refuse_another_space(request, model.traits.fingerprint, entry.id)
        rows = _embed(call, model, entry.id)
        here.tracker.used(entry)
    vectors = [row for row in rows.vectors if not isinstance(row, ClipyardError)]
    answer = Embedded(
        model=entry.id,
        dimension=model.traits.dimension,
        fingerprint=model.traits.fingerprint,
        items=len(rows.vectors),
        dtype=request.dtype,
        failures={
            i: Failure.of(row)
            for i, row in enumerate(rows.vectors)
            if isinstance(row, ClipyardError)
        },
        truncated=rows.truncated,
        chosen=choice.why,
        device=here.placement.device,
        precision=model.traits.precision,
        worker=here.node,
        correlation=correlation.current(),
        timings=Timings(
            queue_s=call.waited_s,
            load_s=loaded - begun,
            decode_s=rows.decode_s,
            forward_s=rows.forward_s,
        ),
    )
    return answer, np.array(vectors) if vectors else np.empty((0, answer.dimension), np.float32)


def _choose(request: EmbedBatch) -> Choice:
    """By the rule of `worker.choice`, the first that is here or can be loaded."""
    here, wish = runtime.here(), Wish.of(request.kinds, request.texts)
    view = here.slots.view()
    tiers = {slot.model_id: slot.tier for slot in view}
    # An entry may say too much, as one of timm that leaves its kinds out.
    unable = {one.model_id for one in view if one.traits and not wish.is_met(one.traits.kinds)}
    device, host = here.memory.device(), here.memory.host()

    def size(entry: Entry) -> int:
        weights = here.ledger[entry.id].weights(entry.memory_bytes)
        return weights.device_bytes if device else weights.host_bytes

    candidates = [
        Candidate(entry, tier=tiers.get(entry.id), size=size(entry))
        for entry in here.catalogue
        if entry.id not in unable
    ]
    choices = ranked(
        wish, candidates, current=runtime.current_id(), budget_bytes=(device or host).total
    )
    refusals = []
    for choice in choices:
        try:
            if tiers.get(choice.entry.id) is None:
                here.families.check(choice.entry)
            return choice
        except ClipyardError as error:
            refusals.append(str(error))
    raise BadRequest(f"no model here can embed {wish}: {'; '.join(refusals[:3])}")


def _refuse_another_kind(request: EmbedBatch, kinds: Collection[Kind], model_id: str) -> None:
    if request.kind not in kinds:
        raise BadRequest(f"{model_id} does not embed {request.kind}s")


def _refuse_another_space(request: EmbedBatch, fingerprint: str, model_id: str) -> None:
    if request.fingerprint not in (None, fingerprint):
        raise SpaceMismatch(
            f"{model_id} answers in the space {fingerprint} here, "
            f"{request.fingerprint} was asked for"
        )


def _embed(call: Call[EmbedBatch], model: Model, model_id: str) -> Rows:
    here, request = runtime.here(), call.request
    embed = partial(
        here.batcher.embed,
        model,
        request.kind,
        model_id=model_id,
        priority=request.priority,
        deadline=request.deadline,
        cancelled=canceller(),
    )
    if request.kind is Kind.TEXT:
        return embed(request.texts, model.prepare_text)
    travelled = any(isinstance(ref, BlobRef) for ref in request.images)
    pictures, blobs = here.pictures(model, model_id), _blobs(call.id) if travelled else {}
    rows = embed(
        range(len(request.images)), lambda i: pictures.prepare(i, request.images[i], blobs)
    )
    pictures.keep(rows.vectors)
    return rows


def _blobs(request_id: str) -> dict[int, bytes]:
    found: Any = runtime.here().redis.hgetall(runtime.here().keys.blobs(request_id))
    return {int(position): data for position, data in found.items()}
