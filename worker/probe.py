"""Tiny forward passes, to see whether a device works again."""

import time

from PIL import Image

from api_client.wire.errors import ClipyardError
from api_client.wire.messages import Cause, Kind, Priority

from .backends.base import Model, Prepared, Tier
from .catalogue import Catalogue
from .datapath.batcher import Batcher
from .residency.slots import Slots

__all__ = ["probe"]

PATIENCE_S = 30.0


def probe(catalogue: Catalogue, slots: Slots, batcher: Batcher) -> None:
    """Tiny forward passes until one works, of the model that was used last first. None where none
    is held; of those at rest only the last one is brought up for it."""
    held = slots.view()
    ready = [slot.model_id for slot in held if slot.tier is Tier.DEVICE]
    for model_id in reversed(ready or [slot.model_id for slot in held[-1:]]):
        with slots.lease(catalogue[model_id], asked_by=Cause.HEALTH) as model:
            rows = batcher.embed(
                model,
                model.traits.kinds[0],
                [model],
                _tiny,
                model_id=model_id,
                priority=Priority.INTERACTIVE,
                deadline=time.time() + PATIENCE_S,
            )
        if not isinstance(rows.vectors[0], ClipyardError):
            return


def _tiny(model: Model) -> Prepared:
    if Kind.IMAGE in model.traits.kinds[:1]:
        size = model.traits.input_size or 1
        return model.prepare_image(Image.new("RGB", (size, size)))
    return model.prepare_text("ok")
