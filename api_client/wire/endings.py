"""By which endings a picture is known among the files of a folder."""

OPENED = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif"),
)

# And of formats that no worker opens: such a picture is a failure with a sentence, where it would
# be left out without a word.
PICTURES = (*OPENED, ".heic", ".heif", ".jxl")
