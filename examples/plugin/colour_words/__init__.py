"""A model family in one class: pictures and the names of colours, in a space of red, green, blue.

It has no weights worth the name, but what it does is what a real one does: `load` brings
something into memory, `embed_images` and `embed_texts` turn rows into vectors.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from worker.backends.base import About
from worker.backends.simple import SimpleModel
from worker.catalogue import Entry


class ColourWords(SimpleModel):
    about = About(
        description="the mean colour of a picture; the colours that a text names",
        version="1.0",
        author="Clipyard",
        tags=("sample",),
        packages=("numpy",),
    )
    models = (
        Entry("colour_words/rgb", description="Red, green and blue", dimension=4, input_size=32),
    )
    dimension = 4  # one for "no colour at all", so that no vector is zero
    input_size = 32

    def load(self) -> None:
        self.words = {word: ImageColor.getrgb(word) for word in ImageColor.colormap}

    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        colours = pixels.mean(axis=(1, 2), dtype=np.float32)
        return np.hstack([colours, np.ones((len(pixels), 1), np.float32)])

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [[self.words[w] for w in text.lower().split() if w in self.words] for text in texts]
        colours = [np.mean(row or [(0, 0, 0)], axis=0) for row in rows]
        return np.array([(*colour[:3], 1) for colour in colours], np.float32)
