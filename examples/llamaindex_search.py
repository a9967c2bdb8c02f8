"""Find pictures by words with LlamaIndex's own vector store in memory.

    clipyard up &
    python examples/llamaindex_search.py PICTURES "a red circle"

Needs `pip install llama-index-core`.
"""

import sys
from pathlib import Path

from llama_index.core.schema import ImageNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import VectorStoreQuery

from api_client import Client, ClipyardError
from api_client.integrations.llamaindex import ClipyardEmbedding

MODEL = "shapes/demo"  # or another of `clipyard models`
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def main(folder: Path, query: str) -> None:
    pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
    if not pictures:
        sys.exit(f"{folder} holds no pictures ({', '.join(ENDINGS)})")
    with Client() as clip:
        model = ClipyardEmbedding(clip, model=MODEL)
        # `get_image_embedding_batch` wants all pictures to be readable; this skips the others.
        nodes = [
            ImageNode(id_=name_of(path), embedding=item.vector.tolist())
            for path, item in zip(pictures, clip.stream_images(pictures, model=MODEL), strict=True)
            if item.vector is not None
        ]
        if not nodes:
            sys.exit(f"no picture in {folder} can be read")
        store = SimpleVectorStore()
        store.add(nodes)
        wanted = model.get_query_embedding(query)
        found = store.query(VectorStoreQuery(query_embedding=wanted, similarity_top_k=5))
        for score, path in zip(found.similarities, found.ids, strict=True):
            print(f"{score:.3f}  {path}")


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
