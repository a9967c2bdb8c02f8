"""Find pictures by words with Qdrant, in its local mode: no server.

    clipyard up &
    python examples/qdrant_search.py PICTURES "a red circle"

Needs `pip install qdrant-client`.
"""

import sys
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams

from api_client import Client, ClipyardError

MODEL = "shapes/demo"  # or another of `clipyard models`
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def main(folder: Path, query: str) -> None:
    pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
    if not pictures:
        sys.exit(f"{folder} holds no pictures ({', '.join(ENDINGS)})")
    with Client() as clip:
        database = QdrantClient(":memory:")
        database.create_collection(
            "pictures",
            vectors_config=VectorParams(size=clip.dimension(MODEL), distance=Distance.COSINE),
        )
        # A picture that cannot be read has no vector; its neighbours are stored.
        points = [
            PointStruct(
                # The same picture gets the same point, however often it is stored.
                id=str(uuid5(NAMESPACE_URL, path.absolute().as_uri())),
                vector=item.vector.tolist(),
                payload={"path": name_of(path), "space": item.fingerprint},
            )
            for path, item in zip(pictures, clip.stream_images(pictures, model=MODEL), strict=True)
            if item.vector is not None
        ]
        if not points:
            sys.exit(f"no picture in {folder} can be read")
        database.upsert("pictures", points)
        [wanted] = clip.embed_texts(query, model=MODEL)
        found = database.query_points("pictures", query=wanted.tolist(), limit=5)
        for point in found.points:
            print(f"{point.score:.3f}  {point.payload['path']}")


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
