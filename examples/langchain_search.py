"""Find pictures by words with LangChain's own vector store in memory.

    clipyard up &
    python examples/langchain_search.py PICTURES "a red circle"

Needs `pip install langchain-core`.
"""

import sys
from pathlib import Path

from langchain_core.vectorstores import InMemoryVectorStore

from api_client import Client, ClipyardError
from api_client.integrations.langchain import ClipyardEmbeddings

MODEL = "shapes/demo"  # or another of `clipyard models`
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def main(folder: Path, query: str) -> None:
    pictures = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
    if not pictures:
        sys.exit(f"{folder} holds no pictures ({', '.join(ENDINGS)})")
    with Client() as clip:
        store = InMemoryVectorStore(ClipyardEmbeddings(clip, model=MODEL))
        # `ClipyardEmbeddings.embed_image` wants all pictures to be readable; this skips the others.
        for path, item in zip(pictures, clip.stream_images(pictures, model=MODEL), strict=True):
            if item.vector is not None:
                name = name_of(path)
                store.store[name] = {
                    "id": name,
                    "vector": item.vector.tolist(),
                    "text": name,
                    "metadata": {},
                }
        if not store.store:
            sys.exit(f"no picture in {folder} can be read")
        for document, score in store.similarity_search_with_score(query, k=5):
            print(f"{score:.3f}  {document.page_content}")


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
