"""What runs inside clip-retrieval's interpreter, with a stand-in for clip-retrieval."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import clip_retrieval, fixtures
from benchmarks.environment import NoPeer

# As much of it as is called: a row for each picture of the folder.
_WORKER = """
import pathlib, pkg_resources, numpy

def worker(*, input_dataset, output_folder, **given):
    logger = LoggerWriter(partition_id=0, stats_folder="")
    logger.start()
    pictures = list(pathlib.Path(input_dataset).iterdir())
    logger({"sample_count": len(pictures)})
    logger.end()
    if not pictures:
        raise SystemExit("no sample found")
    print("Starting the worker")
    below = pathlib.Path(output_folder) / "img_emb"
    below.mkdir(exist_ok=True)
    numpy.save(below / "img_emb_0.npy", numpy.zeros((len(pictures), 512), "float16"))
"""


@pytest.fixture
def inference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[clip_retrieval.Inference]:
    package = tmp_path / "clip_retrieval" / "clip_inference"
    package.mkdir(parents=True)
    (package / "worker.py").write_text(_WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(clip_retrieval, "build", lambda: Path(sys.executable))
    monkeypatch.setattr(fixtures, "models_dir", lambda: tmp_path)
    with clip_retrieval.inference() as running:
        yield running


def test_each_folder_is_answered_with_its_vectors(inference: clip_retrieval.Inference) -> None:
    files = [Path("a.jpg"), Path("b.jpg")]
    for pictures in (5, 3):
        assert inference.embed(inference.folder(files, pictures)) == pictures


def test_one_that_ended_is_no_peer_and_its_last_words_are_told(
    inference: clip_retrieval.Inference,
) -> None:
    empty = inference.folder([], 0)
    for _ in range(2):
        with pytest.raises(NoPeer, match="no sample found"):
            inference.embed(empty)
