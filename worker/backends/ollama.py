"""The Ollama family: text models that a server of Ollama's runs, on this machine or another."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import ollama
from httpx import codes
from numpy.typing import NDArray

from api_client.wire.errors import (
    BackendAway,
    BackendFailed,
    ClipyardError,
    NoAnswer,
    SpaceMismatch,
    WeightsUnavailable,
)
from api_client.wire.messages import Kind

from ..catalogue import Entry
from .base import About, Footprint
from .simple import SimpleModel

__all__ = ["Ollama"]

log = logging.getLogger(__name__)

PREFIX = "ollama/"
TIMEOUT_S = 60.0  # for one answer; a load from a slow disk included
# How long Ollama keeps a model when it hears nothing. Our own timeouts unload it, by a call; this
# is for a worker that was killed, and every request begins it anew.
HELD_S = 3600
GONE_WITHIN_S = 5.0  # Ollama unloads after it has answered
LOOK_S = 0.05
LOCAL = {"localhost", "127.0.0.1", "::1"}
# Of Ollama whose queue is full, and of a proxy in front of one that is away.
BUSY = {codes.BAD_GATEWAY, codes.SERVICE_UNAVAILABLE, codes.GATEWAY_TIMEOUT}


class Ollama(SimpleModel):
    """`architecture` is Ollama's name of the model.

    `options` may say `host` (else OLLAMA_HOST, else this machine), `timeout_s` and `held_s`.
    What Ollama holds elsewhere takes no memory here and is not counted. Ollama cuts long texts to
    the model's context and does not tell.
    """

    about = About(
        description="text models behind an Ollama server",
        tags=("text",),
        packages=("ollama",),
        options=("host", "timeout_s", "held_s"),
    )

    @classmethod
    def describe(cls, model_id: str) -> Entry | None:
        """An entry for `ollama/<name>`; whether it has been pulled is seen at the load."""
        name = model_id.removeprefix(PREFIX)
        if name == model_id or not name:
            return None
        return Entry(model_id, backend="ollama", architecture=name, kinds=(Kind.TEXT,))

    def check(self) -> int:
        try:
            return int(self._pulled().size or 0) if self._is_local else 0
        finally:
            self._close()

    def load(self) -> None:
        """Nothing moves yet: Ollama has no tier between its disk and its device."""
        self._held = Footprint()
        try:
            self._digest = self._pulled().digest or ""
            with self._errors():
                info = self._client.show(self._name).modelinfo or {}
        except BaseException:
            self._close()
            raise
        told = info.get(f"{info.get('general.architecture')}.embedding_length", 0)
        self.dimension = int(told) or self.entry.dimension

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        with self._errors():
            answer = self._client.embed(self._name, input=list(texts), keep_alive=self._held_s)
        self._refuse_other_weights()
        return np.array(answer.embeddings, np.float32)

    def space(self) -> str:
        """Ollama's digest of the model covers weights and parameters."""
        return f"ollama {self._digest}"

    def footprint(self) -> Footprint:
        return self._held

    def lift(self) -> None:
        with self._errors():
            self._client.embed(self._name, input=[], keep_alive=self._held_s)  # loads it
            running = self._running()
        self._refuse_other_weights()
        if running is not None and self._is_local:
            total, device = int(running.size or 0), int(running.size_vram or 0)
            self._held = Footprint(device_bytes=device, host_bytes=total - device)

    def lower(self) -> None:
        """Out of Ollama's memory. Where Ollama is away, it holds none of ours either."""
        try:
            with self._errors():
                self._client.generate(self._name, keep_alive=0)
                self._wait_until_gone()
        except ClipyardError as error:
            log.warning("%s may still be in Ollama's memory: %s", self._name, error)
        self._held = Footprint()

    def unload(self) -> None:
        self.lower()
        self._close()

    def _close(self) -> None:
        """Its connections stay open else, until the garbage is collected."""
        client: Any = self._client  # its `close` has no type
        client.close()

    def _wait_until_gone(self) -> None:
        give_up_at = time.monotonic() + GONE_WITHIN_S
        while self._running() is not None and time.monotonic() < give_up_at:
            time.sleep(LOOK_S)

    @property
    def _name(self) -> str:
        """As Ollama lists it."""
        name = self.entry.architecture
        return name if ":" in name.rpartition("/")[2] else f"{name}:latest"

    @property
    def _held_s(self) -> float:
        return float(self.entry.options.get("held_s", HELD_S))

    @property
    def _is_local(self) -> bool:
        return urlsplit(self._url).hostname in LOCAL

    @property
    def _url(self) -> str:
        return str(self._client._client.base_url)

    @cached_property
    def _client(self) -> ollama.Client:
        options = self.entry.options
        return ollama.Client(host=options.get("host"), timeout=options.get("timeout_s", TIMEOUT_S))

    def _pulled(self) -> ollama.ListResponse.Model:
        """
        Raises:
            WeightsUnavailable: Ollama has no such model.
        """
        with self._errors():
            pulled = self._client.list().models
        for model in pulled:
            if model.model == self._name:
                return model
        raise WeightsUnavailable(
            f"Ollama at {self._url} has no {self._name}: "
            f"run `ollama pull {self.entry.architecture}` there"
        )

    def _refuse_other_weights(self) -> None:
        """After an answer, never before it: Ollama looks the name up anew for each.

        Raises:
            SpaceMismatch: the name stands for others than at the load.
        """
        if self._pulled().digest != self._digest:
            raise SpaceMismatch(
                f"{self._name} was pulled anew and has other weights in Ollama than "
                f"{self.entry.id} has here: run `clipyard unload {self.entry.id}`, then ask again"
            )

    def _running(self) -> ollama.ProcessResponse.Model | None:
        models = self._client.ps().models
        return next((model for model in models if model.model == self._name), None)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Whatever a call of Ollama's raises, as one of ours."""
        try:
            yield
        except (ConnectionError, httpx.NetworkError, httpx.RemoteProtocolError) as error:
            raise BackendAway(
                f"Ollama at {self._url} is away: start it with `ollama serve`, "
                "or set OLLAMA_HOST on the worker"
            ) from error
        except httpx.TimeoutException as error:
            seconds = self.entry.options.get("timeout_s", TIMEOUT_S)
            raise NoAnswer(
                f"Ollama at {self._url} did not answer within {seconds:g} s for {self._name}"
            ) from error
        except ollama.ResponseError as error:
            if error.status_code == codes.NOT_FOUND:
                raise WeightsUnavailable(f"Ollama: {error.error}") from error
            if "memory" in error.error:
                raise MemoryError(f"Ollama: {error.error}") from error
            if error.status_code in BUSY:
                raise BackendAway(f"Ollama at {self._url} cannot answer now: {error}") from error
            raise BackendFailed(f"Ollama refused {self._name}: {error}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise BackendFailed(f"Ollama at {self._url} answered {error!r}") from error
