"""What every answer should have been, computed here, away from the chaos."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from api_client.wire.codec import Vectors
from api_client.wire.messages import Kind
from worker.backends.base import Model, Placement
from worker.backends.fake import Fake
from worker.catalogue import Catalogue, Entry

FAMILIES = {"chaos": "fake", "chaos_open_clip": "open_clip"}
COSINE = 0.9999


class Truth:
    """The vectors of texts and pictures, by the fingerprint that an answer names.

    Args:
        versions: of the checkpoint of `file_model`.
        used: the models that are asked for.
    """

    def __init__(
        self, catalogue: Path, *, file_model: str, versions: Iterable[Path], used: Iterable[str]
    ) -> None:
        from worker.backends.openclip import OpenClip

        placement = Placement(offline=True)
        makers = {"fake": Fake(placement), "open_clip": OpenClip(placement)}
        self._models: dict[tuple[str, str], Model] = {}
        self._alone = Lock()
        for entry in _entries(catalogue, used):
            files = versions if entry.id == file_model else [entry.checkpoint]
            for file in files:
                one = replace(entry, backend=FAMILIES[entry.backend], checkpoint=file)
                model = makers[one.backend].load(one)
                model.lift()
                self._models[entry.id, model.traits.fingerprint] = model
        self._vector = cache(self._computed)

    def is_right(self, model: str, fingerprint: str, content: str | Path, vector: Vectors) -> bool:
        """Whether this is the vector of a text, or of the picture in a file."""
        if (model, fingerprint) not in self._models:
            return False
        with self._alone:
            return float(self._vector(model, fingerprint, content) @ vector) > COSINE

    def _computed(self, model_id: str, fingerprint: str, content: str | Path) -> Vectors:
        model = self._models[model_id, fingerprint]
        if isinstance(content, str):
            rows = model.run(Kind.TEXT, [model.prepare_text(content)])
        else:
            with Image.open(content) as image:
                rows = model.run(Kind.IMAGE, [model.prepare_image(image)])
        vector: Vectors = rows[0] / np.linalg.norm(rows[0])
        return vector


def _entries(catalogue: Path, used: Iterable[str]) -> list[Entry]:
    known: Mapping[str, Entry] = {entry.id: entry for entry in Catalogue.read(catalogue)}
    return [known[model] for model in used]
