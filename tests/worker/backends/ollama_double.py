"""A server that speaks Ollama's published API, as far as embedding needs it.

https://github.com/ollama/ollama/blob/main/docs/api.md
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

DIMENSIONS = {"mxbai-embed-large": 1024, "bge-m3": 1024, "nomic-embed-text": 768}
ARCHITECTURES = {"mxbai-embed-large": "bert", "bge-m3": "bert", "nomic-embed-text": "nomic-bert"}


class OllamaDouble:
    """Its state, which tests look at and change.

    Attributes:
        pulled: names with their tag, and the bytes of each.
        weights: which ones the names stand for; a pull may bring others.
        loaded: names with the `keep_alive` of the last request.
        gate: answers to /api/embed wait for it.
        fail_with: (status, sentence) for the next calls of /api/embed; status 0 hangs up.
    """

    def __init__(self) -> None:
        self.pulled = {f"{name}:latest": 1000 * size for name, size in DIMENSIONS.items()}
        self.weights = 1
        self.loaded: dict[str, float] = {}
        self.in_vram = True
        self.gate = threading.Event()
        self.gate.set()
        self.fail_with: tuple[int, str] | None = None
        self.url = ""

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path == "/api/tags":
            return 200, {"models": [self._listed(name) for name in self.pulled]}
        if path == "/api/ps":
            return 200, {"models": [self._running(name) for name in self.loaded]}
        name = body.get("model", "")
        name = name if ":" in name else f"{name}:latest"
        if name not in self.pulled:
            return 404, {"error": f'model "{name}" not found, try pulling it first'}
        return {
            "/api/show": self._show,
            "/api/generate": self._generate,
            "/api/embed": self._embed,
        }[path](name, body)

    def _show(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        short = name.partition(":")[0]
        kind = ARCHITECTURES[short]
        info = {"general.architecture": kind, f"{kind}.embedding_length": DIMENSIONS[short]}
        return 200, {"modelfile": "", "details": {"family": kind}, "model_info": info}

    def _generate(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body.get("prompt") or body.get("keep_alive") != 0:
            return 400, {"error": f'"{name}" does not support generate'}
        self.loaded.pop(name, None)
        return 200, {"model": name, "response": "", "done": True, "done_reason": "unload"}

    def _embed(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.gate.wait(10)
        if self.fail_with:
            return self.fail_with[0], {"error": self.fail_with[1]}
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        self.loaded[name] = body.get("keep_alive", 300)
        dimension = DIMENSIONS[name.partition(":")[0]]
        rows = [_vector(f"{name} {self.weights} {text}", dimension) for text in texts]
        return 200, {"model": name, "embeddings": rows, "total_duration": 1, "load_duration": 1}

    def _listed(self, name: str) -> dict[str, Any]:
        digest = hashlib.sha256(f"{name} {self.weights}".encode()).hexdigest()
        return {"name": name, "model": name, "size": self.pulled[name], "digest": digest}

    def _running(self, name: str) -> dict[str, Any]:
        vram = self.pulled[name] if self.in_vram else 0
        return {**self._listed(name), "size_vram": vram, "expires_at": "2026-11-20T12:00:00Z"}


def _vector(text: str, dimension: int) -> list[float]:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(dimension)
    unit: list[float] = (vector / np.linalg.norm(vector)).tolist()
    return unit


@contextmanager
def ollama_double() -> Iterator[OllamaDouble]:
    """Serves on loopback for the length of the block."""
    double = OllamaDouble()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(*double.answer(self.path, {}))

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            self._reply(*double.answer(self.path, json.loads(self.rfile.read(length))))

        def _reply(self, status: int, body: dict[str, Any]) -> None:
            if not status:
                return
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A caller that has gone is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    double.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield double
    finally:
        double.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
