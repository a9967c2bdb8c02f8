"""What `fast` changes: nothing that a trained model would see."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from api_client.wire.messages import BlobRef, Kind
from worker.backends.base import Placement
from worker.backends.openclip import OpenClip
from worker.catalogue import BUILT_IN, Catalogue
from worker.datapath.images import ImageReader
from worker.settings import WorkerSettings

PHOTOS = (data.astronaut, data.chelsea, data.coffee, data.rocket)


def jpeg(pixels: NDArray[np.uint8], width: int) -> bytes:
    photo = Image.fromarray(pixels)
    size = (width, width * photo.height // photo.width)
    buffer = io.BytesIO()
    photo.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


# Widths that an eighth divides and, mostly, that it does not.
@pytest.mark.parametrize("width", [333, 500, 640, 801, 1000, 1333, 1920, 2500, 4000])
def test_on_photos_the_trained_model_sees_the_same_in_both_modes(
    width: int, tmp_path: Path
) -> None:
    files = [jpeg(photo(), width) for photo in PHOTOS]

    def vectors(decode: Literal["fast", "exact"]) -> NDArray[np.float32]:
        placement = Placement(cache_dir=tmp_path, decode=decode)
        model = OpenClip(placement).load(Catalogue.read(BUILT_IN)["shapes/demo"])
        reader = ImageReader(WorkerSettings.read(decode=decode))
        near = model.traits.input_size
        pictures = [reader.open(BlobRef(blob=0), {0: file}, near=near) for file in files]
        rows = model.run(Kind.IMAGE, [model.prepare_image(picture) for picture in pictures])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    cosines = (vectors("fast") * vectors("exact")).sum(axis=1)
    assert cosines.min() >= 0.9995  # 0.999 is promised
