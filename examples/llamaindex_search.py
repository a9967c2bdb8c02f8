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

from api_client.integrations.llamaindex import ClipyardEmbedding

MODEL = "shapes/demo"  # or another of `clipyard models`
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def main(folder: Path, query: str) -> None:
    pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
    if not pictures:
        sys.exit(f"{folder} holds no pictures ({', '.join(ENDINGS)})")
    model = ClipyardEmbedding(model=MODEL)
    store = SimpleVectorStore()
    vectors = model.get_image_embedding_batch([str(path) for path in pictures])
    store.add(
        [
            ImageNode(id_=str(path), image_path=str(path), embedding=vector)
            for path, vector in zip(pictures, vectors, strict=True)
        ]
    )
    wanted = VectorStoreQuery(query_embedding=model.get_query_embedding(query), similarity_top_k=5)
    found = store.query(wanted)
    for score, path in zip(found.similarities, found.ids, strict=True):
        print(f"{score:.3f}  {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
