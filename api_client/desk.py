"""Everything a client may be asked for, as talks. Arguments are checked before the first step."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import redis

from . import inputs
from .embedding import Embedding, Submitted
from .inputs import Picture
from .reembed.job import JobOptions, specification
from .reembed.talks import listing, submit
from .requests import (
    EmbedOptions,
    MakeCall,
    checked,
    image_calls,
    keep_alive,
    managing,
    node_names,
    own_model,
    seconds,
    settable,
    text_calls,
)
from .results import Item, Loaded, MemoryUse, matrix
from .status import Fleet, Worker, fleet_talk
from .steps import Talk, each
from .talks import Call, Line
from .vigil import NOBODY
from .wire import names
from .wire.codec import Vectors, none_of_ours, unpack_row
from .wire.errors import (
    BadRequest,
    ClipyardError,
    NoBroker,
    NoWorker,
    UnknownModel,
    from_wire,
    nearest,
)
from .wire.jobs import JobStatus, Migration, Place
from .wire.messages import (
    AUTO,
    CatalogueEntry,
    Load,
    Managed,
    Pressure,
    Reload,
    Request,
    Scope,
    Set,
    Switch,
    Unload,
)

EVERYBODY = "all"  # among names, which all have an @

Workers = Sequence[str] | None
CallsOf = Callable[[EmbedOptions], Iterator[MakeCall]]


class Desk:
    """Says what to do for each call of a client.

    Args:
        asked_by: a name for the event stream.
    """

    def __init__(self, line: Line, *, asked_by: str) -> None:
        self.line = line
        self._settings = line.settings
        self._asked_by = asked_by

    def images(self, images: Iterable[Picture], options: EmbedOptions) -> Embedding:
        source = inputs.several(images)
        return self._embedding(
            lambda named: image_calls(source, named, self._settings, self._asked_by), options
        )

    def texts(self, texts: str | Iterable[str], options: EmbedOptions) -> Embedding:
        return self._texts(inputs.texts(texts), options)

    def each_text(self, texts: str | Iterable[str], options: EmbedOptions) -> Talk[list[Item]]:
        """All items, in order.

        A text takes as long as the longest of its message, so those of like length travel together.
        The longest go first: what runs last is short, and of a model to be chosen whoever chooses
        knows what it has to hold.
        """
        found = inputs.texts(texts)
        order = sorted(range(len(found)), key=lambda at: -len(found[at]))
        items = yield from self._texts([found[at] for at in order], options).all()
        return [item for _, item in sorted(zip(order, items, strict=True))]

    def _texts(self, checked_texts: list[str], options: EmbedOptions) -> Embedding:
        return self._embedding(
            lambda named: text_calls(checked_texts, named, self._settings, self._asked_by), options
        )

    def _embedding(self, calls_of: CallsOf, options: EmbedOptions) -> Embedding:
        return Embedding(self.line, calls_of, checked(options))

    def submission(
        self, embed: Callable[[Any, EmbedOptions], Embedding], items: Any, options: EmbedOptions
    ) -> Embedding:
        """As `images` or `texts`, with the longest patience that makes sense by default."""
        if options.get("timeout") is None:
            options = {**options, "timeout": float(self._settings.answer_ttl_s)}
        return embed(items, options)

    def image_rows(self, images: Iterable[Picture], options: EmbedOptions) -> Talk[Vectors]:
        return self._rows(self.images(images, options).all(), options)

    def text_rows(self, texts: str | Iterable[str], options: EmbedOptions) -> Talk[Vectors]:
        return self._rows(self.each_text(texts, options), options)

    def _rows(self, asked: Talk[list[Item]], options: EmbedOptions) -> Talk[Vectors]:
        items = yield from asked
        if items:
            return matrix(items)
        model = options.get("model")
        usual = None if model == AUTO else model  # nothing was asked for that could be chosen by
        return np.empty((0, (yield from self.dimension(usual))), np.float32)

    def submitted(self, submitted_id: str) -> Submitted:
        return Submitted(self.line, submitted_id)

    def wait(self, submitted: Submitted, timeout: float | None) -> Talk[list[Item]]:
        return submitted.wait(time.time() + seconds(timeout, self._settings))

    def load(
        self, model: str, workers: Workers, timeout: float | None, keep_alive_s: float | None
    ) -> Talk[list[Managed]]:
        kept_s = keep_alive(keep_alive_s)
        request = self._about(Load, timeout, model=own_model(model), keep_alive_s=kept_s)
        chosen = (yield from self._named(workers)) or [(yield from self._best_for(model)).name]
        return (yield from self._ask(names.LOAD, request, chosen))

    def reload(self, model: str, workers: Workers, timeout: float | None) -> Talk[list[Managed]]:
        request = self._about(Reload, timeout, model=own_model(model))
        chosen = yield from self._named(workers)
        if chosen is None:
            holding = yield from self._loaded(model)
            chosen = [one.worker for one in holding] or [(yield from self._best_for(model)).name]
        return (yield from self._ask(names.RELOAD, request, chosen))

    def switch(self, model: str, workers: Workers, timeout: float | None) -> Talk[list[Managed]]:
        reach = "fleet" if workers is None else "worker"
        request = self._about(Switch, timeout, model=own_model(model), reach=reach)
        return (yield from self._ask_all(names.SWITCH, request, workers))

    def unload(
        self,
        model: str | None,
        scope: Scope,
        family: str | None,
        workers: Workers,
        timeout: float | None,
    ) -> Talk[list[Managed]]:
        named = None if model is None else own_model(model)
        request = self._about(Unload, timeout, model=named, scope=scope, family=family)
        return (yield from self._ask_all(names.UNLOAD, request, workers))

    def set_knobs(
        self, knobs: Mapping[str, Any], workers: Workers, timeout: float | None
    ) -> Talk[list[Managed]]:
        request = self._about(Set, timeout, knobs=settable(knobs))
        return (yield from self._ask_all(names.SET, request, workers))

    def _about(self, kind: type[Request], timeout: float | None, **fields: Any) -> Request:
        fields |= {"deadline": time.time() + seconds(timeout, self._settings)}
        return managing(kind, asked_by=self._asked_by, **fields)

    def _ask_all(self, task: str, request: Request, workers: Workers) -> Talk[list[Managed]]:
        chosen = yield from self._named(workers)
        chosen = chosen or (yield from self._everybody())
        return (yield from self._ask(task, request, chosen))

    def _everybody(self) -> Talk[list[str]]:
        """The live workers; those that stop, and would answer once they are back, only if no
        other is there.

        Raises:
            NoWorker: nobody is there.
        """
        fleet = yield from self.status()
        if not fleet.workers:
            raise NoWorker(NOBODY)
        staying = [worker.name for worker in fleet.workers if worker.state != "stopping"]
        return staying or [worker.name for worker in fleet.workers]

    def _named(self, workers: Workers) -> Talk[Sequence[str] | None]:
        """The workers a call names, which may be away for a moment; None if it names none.

        Raises:
            BadRequest: nobody is known by one of these names. NoWorker: nor is anybody there.
        """
        named = node_names(workers)
        if named and EVERYBODY in named:
            return (yield from self._everybody())
        if named and (unknown := (yield from self.line.unknown_workers(named))):
            if not (alive := (yield from self.line.live_workers())):
                raise NoWorker(NOBODY)
            raise BadRequest(
                f"no worker is called {unknown[0]!r:.200}; there are {', '.join(alive)}"
            )
        return named

    def _ask(self, task: str, request: Request, workers: Sequence[str]) -> Talk[list[Managed]]:
        """Every worker's answer; if one refused, its refusal once all have answered, which names it
        and who did it."""
        calls = [Call(task, request, queue=names.direct_queue(worker)) for worker in workers]
        waiting = deque(calls)
        answers: list[Managed] = []
        refusals: list[tuple[str, ClipyardError]] = []
        try:
            for call in calls:
                yield from self.line.send(call)
            while waiting:
                try:
                    answer = (yield from self.line.wait(waiting[0])).managed()
                except NoBroker:
                    raise
                except ClipyardError as error:
                    refusals.append((workers[-len(waiting)], error))
                else:
                    answers.append(answer)
                waiting.popleft()
        except NoBroker:  # who can be told no more; the deadline stops what was sent
            waiting.clear()
            raise
        finally:
            yield from self.line.let_go(waiting)
        if not refusals:
            return answers
        worker, refusal = refusals[0]
        if isinstance(refusal, BadRequest) and not answers:  # all say the same
            raise refusal
        did = f"; done by {', '.join(answer.worker for answer in answers)}" if answers else ""
        sentence = f"{worker}: {refusal}{did}"
        raise from_wire(refusal.code, sentence, retryable=refusal.retryable)

    def _best_for(self, model: str) -> Talk[Worker]:
        """The live worker that holds a model already, or has the most slots to spare; one that
        stops, and would answer once it is back, or cannot compute, only if there is no other."""
        fleet = yield from self.status()
        if not fleet.workers:
            raise NoWorker(NOBODY)
        alike = yield from self._aliases(model)

        def rank(worker: Worker) -> tuple[bool, bool, int, str]:
            is_out = worker.state in ("stopping", "broken")
            holds = any(held.id in alike for held in worker.held)
            return is_out, not holds, len(worker.held) - worker.slots, worker.name

        return min(fleet.workers, key=rank)

    def status(self) -> Talk[Fleet]:
        return fleet_talk(self.line.keys)

    def loaded(self) -> Talk[list[Loaded]]:
        fleet = yield from self.status()
        return [Loaded(worker=worker.name, **dict(model)) for worker, model in fleet.in_memory]

    def is_loaded(self, model: str) -> Talk[bool]:
        return bool((yield from self._loaded(own_model(model))))

    def _loaded(self, model: str) -> Talk[list[Loaded]]:
        alike = yield from self._aliases(model)
        return [loaded for loaded in (yield from self.loaded()) if loaded.id in alike]

    def _aliases(self, model: str) -> Talk[set[str]]:
        entry = entry_of((yield from self.models()), model)
        return {entry.id, *entry.aliases} if entry else {model}

    def current_model(self) -> Talk[str]:
        return (yield from self.status()).answering()

    def reembed(
        self,
        source: str | Path | Place,
        sink: str | Path | Place,
        model: str | None,
        migration: Migration | None,
        options: JobOptions,
    ) -> Talk[str]:
        wanted = (yield from self.current_model()) if model is None else own_model(model)
        spec = specification(
            source, sink, wanted, migration=migration, asked_by=self._asked_by, **options
        )
        return (yield from submit(self.line, spec))

    def jobs(self) -> Talk[list[JobStatus]]:
        return listing(self.line)

    def memory_use(self, model: str | None) -> Talk[MemoryUse]:
        wanted = (yield from self.current_model()) if model is None else own_model(model)
        loaded = yield from self._loaded(wanted)
        return MemoryUse(
            device_bytes=sum(one.device_bytes for one in loaded),
            host_bytes=sum(one.host_bytes for one in loaded),
        )

    def pressure(self) -> Talk[Pressure]:
        return (yield from self.status()).pressure

    def models(self) -> Talk[list[CatalogueEntry]]:
        [rows] = yield from each(methodcaller("hgetall", self.line.keys.catalogue))
        if isinstance(rows, redis.ResponseError):
            raise none_of_ours("the catalogue", str(rows))
        entries = []
        for row in rows.values():
            with suppress(ClipyardError):  # of a newer worker perhaps, and no reason to hide others
                entries.append(unpack_row(CatalogueEntry, row))
        return entries

    def model_info(self, model: str | None) -> Talk[CatalogueEntry]:
        wanted = (yield from self.current_model()) if model is None else own_model(model)
        entries = yield from self.models()
        if entry := entry_of(entries, wanted):
            return entry
        raise unlisted(entries, wanted)

    def dimension(self, model: str | None) -> Talk[int]:
        wanted = (yield from self.current_model()) if model is None else own_model(model)
        for loaded in (yield from self._loaded(wanted)):
            if loaded.dimension:  # a model that no catalogue lists tells it when it is loaded
                return loaded.dimension
        return (yield from self.model_info(wanted)).dimension


def entry_of(entries: Iterable[CatalogueEntry], model: str) -> CatalogueEntry | None:
    """The one that an id or an alias means."""
    return next((entry for entry in entries if model in (entry.id, *entry.aliases)), None)


def unlisted(entries: Iterable[CatalogueEntry], model: str) -> ClipyardError:
    """The refusal of a model that no entry means."""
    if not (listed := [name for entry in entries for name in (entry.id, *entry.aliases)]):
        return NoWorker(NOBODY)  # what lists them is gone soon after the last worker
    hint = nearest(model, listed, otherwise="see `clipyard models`", cutoff=0.4)
    return UnknownModel(f"no worker lists a model {model!r:.200}; {hint}")
