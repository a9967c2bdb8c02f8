"""clip-retrieval's inference, kept running: its own reader, mapper and writer, a folder a call.

One process takes them all, so that no call waits for imports or for the model. Only its logger is
left out: a process that imports everything anew (10 s) for each folder.
"""

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from select import select

import numpy as np

from . import fixtures
from .environment import NoPeer, interpreter, last_line, offline

VERSION = "2.45.0"
# Each of its four readers fills a batch: with its 256 they would want a thousand pictures a call.
BATCH = 16
ANSWER_S = 180.0  # of which importing is most, the first time

# Run by its interpreter: each line names a folder and is answered once the vectors lie there.
_INFER = """
import sys
from types import SimpleNamespace
import packaging.version

# What its `clip` wants of it went with setuptools 70; torch wants a later one.
sys.modules["pkg_resources"] = SimpleNamespace(packaging=packaging)
from clip_retrieval.clip_inference import worker as inference

class NoLogger:
    def __init__(self, **given): pass
    def __call__(self, stats): pass
    def start(self): pass
    def end(self): pass

inference.LoggerWriter = NoLogger
model, batch, into = sys.argv[1:]
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    inference.worker(
        tasks=[0], output_partition_count=1, input_dataset=line.rstrip(), output_folder=into,
        batch_size=int(batch), enable_text=False, clip_model=model, use_jit=False,
    )
    print("done", file=answers, flush=True)
"""


@dataclass(frozen=True)
class Inference:
    """It waits for folders."""

    process: subprocess.Popen[bytes]
    home: Path

    def folder(self, files: Sequence[Path], pictures: int) -> Path:
        """One with so many pictures: the files, again and again."""
        below = Path(tempfile.mkdtemp(dir=self.home))
        for number, file in enumerate(islice(cycle(files), pictures)):
            (below / f"{number:04}.jpg").symlink_to(file)
        return below

    def wait_ready(self) -> None:
        """Until it has loaded the model and embedded a batch.

        Raises:
            NoPeer: it ended, or took too long.
        """
        self.embed(self.folder(fixtures.photos(*fixtures.SIZES[0]), BATCH))

    def embed(self, folder: Path) -> int:
        """The vectors that it wrote.

        Raises:
            NoPeer: it ended, or took too long.
        """
        asked, answers = self.process.stdin, self.process.stdout
        assert asked
        assert answers
        with suppress(BrokenPipeError):  # then there is no answer either
            asked.write(f"{folder}\n".encode())
        answered, _, _ = select([answers], [], [], ANSWER_S)
        if not answered or not answers.readline():
            said = last_line((self.home / "log").read_text())
            raise NoPeer(f"clip-retrieval {VERSION} did not answer: {said}")
        return len(np.load(self.home / "img_emb" / "img_emb_0.npy"))


def build() -> Path:
    """Its interpreter; the environment is built once.

    Raises:
        NoPeer: it cannot be built here.
    """
    return interpreter("clip-retrieval", VERSION, f"clip-retrieval=={VERSION}")


@contextmanager
def inference() -> Iterator[Inference]:
    """It, at its defaults but for the batch, with the seeded weights; perhaps not ready yet."""
    weights = fixtures.weights()
    with tempfile.TemporaryDirectory(prefix="clipyard-clip-retrieval-") as kept:
        home = Path(kept)
        given = (f"open_clip:{weights.parent.name}/{weights}", str(BATCH), kept)
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(build()), "-c", _INFER, *given],
                bufsize=0,  # a line goes at once
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=offline(),
            )
        with process:
            try:
                yield Inference(process, home)
            finally:
                process.kill()
