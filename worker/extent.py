"""How much of a decoded picture is picture.

A JPEG of 3004 pixels that its decoder shrinks to an eighth has 375.5, and comes as 376. Whoever
resizes it as if it had 376 moves what it shows by up to half a pixel, which a model sees: a cosine
of 0.997 where 0.9999 is possible. So the true size travels with the picture.
"""

from PIL import Image

_KEY = "clipyard_extent"


def set_extent(image: Image.Image, extent: tuple[float, float]) -> None:
    """Width and height in pixels of the image, of which the last may count in part.

    Raises:
        ValueError: it is not the extent of this image.
    """
    if not all(size - 1 < part <= size for part, size in zip(extent, image.size, strict=True)):
        raise ValueError(f"an image of {image.size} with an extent of {extent}")
    image.info[_KEY] = extent


def extent_of(image: Image.Image) -> tuple[float, float]:
    """What `set_extent` said, which copies and conversions of the image keep; else its size."""
    width, height = image.info.get(_KEY, image.size)
    return width, height
