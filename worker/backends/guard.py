"""Plug-ins at arm's length: what hangs in one holds nobody up for longer than its patience.

A thread cannot be ended. So a plug-in's code runs in threads of its own, and who called it goes on
without what does not come back.
"""

import contextvars
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from api_client.wire.errors import BackendFailed
from api_client.wire.messages import Kind

from .base import Collated, Footprint, Model, PreparedText, unloaded_if_mute

__all__ = ["Guard", "GuardedModel"]

T = TypeVar("T")


class Guard:
    """Of one family. While a call hangs, further ones are refused at once, except a last one.

    Args:
        name: of the family.
        patience_s: how long one call may take.
    """

    def __init__(self, name: str, patience_s: float) -> None:
        self._name = name
        self._patience_s = patience_s
        self._hanging: list[Thread] = []

    @property
    def trouble(self) -> str:
        """Which calls hang, as a sentence; empty if none does."""
        hanging = {thread.name for thread in self._hanging if thread.is_alive()}
        return f"the model family {self._name} hangs in {', '.join(hanging)}" if hanging else ""

    def call(self, step: str, what: Callable[[], T]) -> T:
        """What `what` answers or raises.

        Raises:
            BackendFailed: it hangs, or another call still does.
        """
        if trouble := self.trouble:
            raise BackendFailed(trouble)
        return self.last_call(step, what)

    def last_call(self, step: str, what: Callable[[], T]) -> T:
        """As `call`, but whatever else hangs: nobody asks for it a second time."""
        answers: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                answers.append(what())
            except BaseException as error:  # SystemExit too: a plug-in does not end the worker
                errors.append(error)

        thread = Thread(target=contextvars.copy_context().run, args=(run,), name=step, daemon=True)
        thread.start()
        thread.join(self._patience_s)
        if answers:
            return answers[0]
        if not errors:
            self._hanging.append(thread)
            raise BackendFailed(
                f"the model family {self._name} hangs: {step} took over {self._patience_s:g} s"
            )
        if isinstance(errors[0], Exception):
            raise errors[0]
        raise BackendFailed(f"the model family {self._name}: {step} raised {errors[0]!r}")


class GuardedModel:
    """A plug-in's model behind its family's guard."""

    def __init__(self, model: Model, guard: Guard) -> None:
        self._model, self._guard = model, guard
        with unloaded_if_mute(self):
            self.traits = guard.call("traits", lambda: model.traits)

    def prepare_image(self, image: Image.Image) -> NDArray[np.uint8]:
        return self._guard.call("prepare_image", partial(self._model.prepare_image, image))

    def prepare_text(self, text: str) -> PreparedText:
        return self._guard.call("prepare_text", partial(self._model.prepare_text, text))

    def collate(self, kind: Kind, rows: Collated) -> Collated:
        return self._guard.call("collate", partial(self._model.collate, kind, rows))

    def run(self, kind: Kind, batch: Collated) -> NDArray[np.float32]:
        return self._guard.call("run", partial(self._model.run, kind, batch))

    def footprint(self) -> Footprint:
        return self._guard.call("footprint", self._model.footprint)

    def lift(self) -> None:
        self._guard.call("lift", self._model.lift)
        # The first one may find out how many rows it can take at once.
        self.traits = self._guard.call("traits", lambda: self._model.traits)

    def lower(self) -> None:
        self._guard.call("lower", self._model.lower)

    def unload(self) -> None:
        self._guard.last_call("unload", self._model.unload)
