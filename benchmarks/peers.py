"""Beside infinity's server and clip-retrieval's inference: same architecture, pictures and machine.

Four clients send sixteen pictures a call, each its next call once the last one is answered: to
infinity as data URIs, to us as paths and as bytes. clip-retrieval's inference serves nobody: it
reads as many from a folder.
`defaults` is what either does unasked; `float32` and `bfloat16` set both to the same precision,
where the CPU computes in bfloat16: elsewhere that is what both do unasked.
Only one of them works at a time, and they take turns. The first run builds the peers' environments
(6 GB each) from the package registry and keeps them beside the fixtures; that is not timed.
"""

import json
import socket
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from itertools import chain, cycle, islice
from pathlib import Path
from statistics import median

import open_clip

from api_client import Client
from worker.backends.placement import best_precision

from . import clip_retrieval, fixtures
from .environment import NoPeer, interpreter, last_line, offline
from .report import Options, Report
from .rounds import Contestant, medians, p99, per_second, ratio, timed
from .stack import stack

INFINITY = "0.0.78"
CLIENTS, PER_CALL = 4, 16
QUICK_TEXTS = 20
READY_S = 180.0  # of which importing is most
AT_DEFAULTS = {"640x480": 3.0, "4000x3000": 10.0}  # goals where the CPU computes in bfloat16
AHEAD = 1.0

# Of each client, by the pictures' width and height.
CALLS, QUICK_CALLS = {(640, 480): 2, (4000, 3000): 1}, {(640, 480): 1}
TEXTS, TEXT_ROUNDS = 150, 2
WITHIN_S = 70.0  # of one size

# Run by infinity's interpreter: the architecture of ViT-B-32 with random weights, as a
# Hugging Face folder around the tokenizer's files that lie there already.
_WRITE_MODEL = """
import sys, torch, transformers as t
folder = sys.argv[1]
torch.manual_seed(0)
tokenizer = t.CLIPTokenizerFast.from_pretrained(folder, model_max_length=77)
config = t.CLIPConfig(text_config={"hidden_act": "gelu"}, vision_config={"hidden_act": "gelu"})
t.CLIPModel(config).save_pretrained(folder)
t.CLIPProcessor(t.CLIPImageProcessor(), tokenizer).save_pretrained(folder)
"""


def run(options: Options) -> Report:
    begun = time.monotonic()
    if options.device != "cpu":
        return Report("peers", time.monotonic() - begun, note="a comparison on CPUs only")
    try:
        needs = (f"infinity-emb[torch,vision,server]=={INFINITY}", "aiohttp")
        python = interpreter("infinity", INFINITY, *needs)
        clip_retrieval.build()
        begun = time.monotonic()
        return _compared(python, _model_folder(python), quick=options.quick, begun=begun)
    except NoPeer as error:
        return Report("peers", time.monotonic() - begun, note=str(error))


def _compared(python: Path, folder: Path, *, quick: bool, begun: float) -> Report:
    pairs = _pairs(quick)
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    goals: dict[str, float] = {}
    with ExitStack() as up, ThreadPoolExecutor(CLIENTS) as clients:
        retrieval = up.enter_context(clip_retrieval.inference())
        theirs = {
            dtype: up.enter_context(infinity(python, folder, dtype))
            for dtype in dict.fromkeys(dtype for dtype, _ in pairs.values())
        }
        ours = {
            precision: up.enter_context(stack("cpu", precision=precision))
            for precision in dict.fromkeys(precision for _, precision in pairs.values())
        }
        for server in theirs.values():
            server.wait_ready()
        retrieval.wait_ready()
        for (width, height), often in (QUICK_CALLS if quick else CALLS).items():
            size = f"{width}x{height}"
            files = list(islice(cycle(fixtures.photos(width, height)), PER_CALL))
            calls = _calls(theirs, ours, files)
            in_folder = retrieval.folder(files, CLIENTS * PER_CALL * often)
            speeds = per_second(
                {
                    **{
                        name: partial(_spread, clients, often, call) for name, call in calls.items()
                    },
                    "clip-retrieval": partial(retrieval.embed, in_folder),
                },
                within_s=0.0 if quick else WITHIN_S,
                warm_ups=calls,
            )
            for kind, (dtype, precision) in pairs.items():
                for way in ("paths", "bytes"):
                    row = f"{kind} {size}, {way}"
                    ratios[row] = ratio(speeds, f"ours {precision} {way}", f"infinity {dtype}")
                    goals[row] = AT_DEFAULTS[size] if _fast_default(kind) else AHEAD
                if dtype == "auto":  # float32, which clip-retrieval computes in as well
                    row = f"clip-retrieval, {kind} {size}, paths"
                    ratios[row] = ratio(speeds, f"ours {precision} paths", "clip-retrieval")
                    goals[row] = AHEAD
            figures |= medians(speeds, f"{size} ")
        spans = _text_ms(theirs, ours, quick=quick)
    for name, each in spans.items():
        figures |= {f"one text {name} p50 ms": median(each), f"one text {name} p99 ms": p99(each)}
    for kind, (dtype, precision) in pairs.items():
        for rank in ("p50", "p99"):
            row = f"{kind} one text, {rank}"
            of = {side: figures[f"one text {side} {rank} ms"] for side in spans}
            ratios[row] = of[f"infinity {dtype}"] / of[f"ours {precision}"]
            goals[row] = AHEAD
    return Report(
        name="peers",
        seconds=time.monotonic() - begun,
        ratios=ratios,
        goals=goals,
        figures=figures,
        note=f"infinity {INFINITY}, which loads CLIP in float32 on a CPU whatever --dtype says;"
        f" {CLIENTS} clients x {PER_CALL} pictures a call; clip-retrieval {clip_retrieval.VERSION},"
        f" as many in a folder, {clip_retrieval.BATCH} a batch",
    )


def _pairs(quick: bool) -> dict[str, tuple[str, str]]:
    """What is compared: infinity's --dtype and our precision. Its `auto` is float32 on a CPU."""
    pairs = {"defaults": ("auto", "auto")}
    if not quick and best_precision("cpu") == "bfloat16":
        pairs |= {"float32": ("auto", "float32"), "bfloat16": ("bfloat16", "auto")}
    return pairs


def _fast_default(kind: str) -> bool:
    return kind == "defaults" and best_precision("cpu") == "bfloat16"


def _calls(
    theirs: Mapping[str, "Server"], ours: Mapping[str, Client], files: Sequence[Path]
) -> dict[str, Contestant]:
    """One of each server. Everything that is sent exists before the clock starts."""
    body = _body([_data_uri(file) for file in files], modality="image")
    blobs = [file.read_bytes() for file in files]
    calls: dict[str, Contestant] = {}
    for name, server in theirs.items():
        calls[f"infinity {name}"] = partial(server.embed, body)
    for name, client in ours.items():
        for way, pictures in (("paths", files), ("bytes", blobs)):
            calls[f"ours {name} {way}"] = partial(_embed, client, pictures)
    return calls


def _spread(clients: ThreadPoolExecutor, calls: int, call: Contestant) -> int:
    """So many calls of each client; the vectors that came back."""
    return sum(clients.map(lambda _: sum(call() for _ in range(calls)), range(CLIENTS)))


def _embed(client: Client, pictures: Sequence[Path | bytes]) -> int:
    return len(client.embed_images(pictures, model=fixtures.MODEL_ID))


def _text_ms(
    theirs: Mapping[str, "Server"], ours: Mapping[str, Client], *, quick: bool
) -> dict[str, list[float]]:
    """ms of single calls to otherwise idle servers."""
    body = _body([fixtures.TEXT], modality="text")
    calls: dict[str, Callable[[], object]] = {
        **{f"infinity {name}": partial(one.embed, body) for name, one in theirs.items()},
        **{
            f"ours {name}": partial(one.embed_texts, fixtures.TEXT, model=fixtures.MODEL_ID)
            for name, one in ours.items()
        },
    }
    spans: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 if quick else TEXT_ROUNDS):
        for name, call in calls.items():
            spans[name] += timed(call, QUICK_TEXTS if quick else TEXTS)
    return spans


@dataclass(frozen=True)
class Server:
    """infinity, listening on loopback."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def wait_ready(self) -> None:
        """Until it has loaded the model and warmed it up.

        Raises:
            NoPeer: it ended, or took too long.
        """
        until = time.monotonic() + READY_S
        while self.process.poll() is None and time.monotonic() < until:
            try:
                self._request("GET", "/health")
            except OSError:
                time.sleep(0.5)
            else:
                return
        raise NoPeer(f"infinity {INFINITY} did not start: {last_line(self.log.read_text())}")

    def embed(self, body: bytes) -> int:
        """The vectors that came back."""
        return len(json.loads(self._request("POST", "/embeddings", body))["data"])

    def _request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=READY_S)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise NoPeer(f"infinity {INFINITY} answered {response.status}: {answer[:200]!r}")
        return answer


@contextmanager
def infinity(python: Path, folder: Path, dtype: str) -> Iterator[Server]:
    """Its server, at its defaults but for the precision; perhaps not ready yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(python.with_name("infinity_emb")), "v2", "--model-id", str(folder)]
    # What it warms up with takes a minute and serves to log its speed; our first round does it.
    command += ["--no-model-warmup", "--dtype", dtype, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryDirectory(prefix="clipyard-infinity-") as kept:
        log = Path(kept) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=offline())
        try:
            yield Server(process, port, log)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _body(inputs: Sequence[str], *, modality: str) -> bytes:
    return json.dumps({"input": inputs, "modality": modality}).encode()


def _data_uri(file: Path) -> str:
    return f"data:image/jpeg;base64,{b64encode(file.read_bytes()).decode()}"


def _model_folder(python: Path) -> Path:
    folder = python.parents[1] / "ViT-B-32"
    if not (folder / "preprocessor_config.json").exists():
        folder.mkdir(exist_ok=True)
        _write_tokenizer(folder)
        subprocess.run([python, "-c", _WRITE_MODEL, folder], check=True, env=offline())
    return folder


def _write_tokenizer(folder: Path) -> None:
    """open_clip's vocabulary under the names that transformers gives it."""
    ours = open_clip.SimpleTokenizer()
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {named.get(token, token): number for token, number in ours.encoder.items()}
    merges = chain(["#version: 0.2"], (" ".join(pair) for pair in ours.bpe_ranks))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
