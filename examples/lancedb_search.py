"""Find pictures by words with LanceDB, in a folder of its own.

    clipyard up &
    python examples/lancedb_search.py PICTURES "a red circle"

Needs `pip install lancedb`.
"""

import sys
import tempfile
from pathlib import Path

import lancedb

from api_client import Client, ClipyardError

MODEL = "shapes/demo"  # or another of `clipyard models`
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def main(folder: Path, query: str) -> None:
    pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
    if not pictures:
        sys.exit(f"{folder} holds no pictures ({', '.join(ENDINGS)})")
    with Client() as clip, tempfile.TemporaryDirectory() as place:
        rows = [
            {"path": name_of(path), "vector": item.vector}
            for path, item in zip(pictures, clip.stream_images(pictures, model=MODEL), strict=True)
            if item.vector is not None  # a picture that cannot be read
        ]
        if not rows:
            sys.exit(f"no picture in {folder} can be read")
        table = lancedb.connect(place).create_table("pictures", rows)
        [wanted] = clip.embed_texts(query, model=MODEL)
        for row in table.search(wanted).distance_type("cosine").limit(5).to_list():
            print(f"{1 - row['_distance']:.3f}  {row['path']}")


def name_of(path: Path) -> str:
    """As it can be stored and shown: a file's name need not be UTF-8."""
    return str(path).encode(errors="backslashreplace").decode()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except ClipyardError as error:  # a text that cannot be used, nobody who answers
        sys.exit(f"error: {error}")
