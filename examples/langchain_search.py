"""Find pictures by words with LangChain's own vector store in memory.

    clipyard up &
    python examples/langchain_search.py PICTURES "a red circle"

Needs `pip install langchain-core`.
"""

import sys
from pathlib import Path

from langchain_core.vectorstores import InMemoryVectorStore

from api_client.integrations.langchain import ClipyardEmbeddings

MODEL = "shapes/demo"  # or another of `clipyard models`
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def main(folder: Path, query: str) -> None:
    pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
    if not pictures:
        sys.exit(f"{folder} holds no pictures ({', '.join(ENDINGS)})")
    embeddings = ClipyardEmbeddings(model=MODEL)
    store = InMemoryVectorStore(embeddings)
    for path, vector in zip(pictures, embeddings.embed_image(pictures), strict=True):
        store.store[str(path)] = {
            "id": str(path),
            "vector": vector,
            "text": str(path),
            "metadata": {},
        }
    for document, score in store.similarity_search_with_score(query, k=5):
        print(f"{score:.3f}  {document.page_content}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
