"""Clients that ask all the time, ask again where an error says that it helps, and keep account."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path

from api_client import Client
from api_client.results import Item
from api_client.wire.errors import ClipyardError, ImageUnreachable, NoAnswer, Quarantined

from . import elsewhere
from .truth import Truth
from .world import FILE_MODEL, World

CALL_S = 90.0  # for one call
PATIENCE_S = 240.0  # for all tries of one call together
PAUSE_S = 0.5
MOST_ITEMS = 32
ONE_MORE = "a cat and one more: "


class Way(StrEnum):
    """How a call is made."""

    TEXTS = "texts"
    SUBMITTED = "submitted texts"  # and waited for twice, as all that is submitted
    TEXTS_ELSEWHERE = "texts that the client process submits"
    PATHS = "paths"
    BYTES = "bytes"
    BYTES_ELSEWHERE = "bytes that the client process submits"
    URLS = "urls"


OF_TEXTS = (Way.TEXTS, Way.SUBMITTED, Way.TEXTS_ELSEWHERE)


@dataclass(frozen=True)
class Call:
    """What one caller asks for.

    Attributes:
        due_s: after the start.
    """

    number: int
    due_s: float
    model: str
    way: Way
    items: int


def calls(seed: int, items: int, *, over_s: float, models: Sequence[str]) -> Iterator[Call]:
    """So many items in calls of 1 to 32, spread evenly; the same from the same seed."""
    dice, asked, number = random.Random(f"calls {seed}"), 0, 0
    while asked < items:
        size = min(items - asked, dice.choice((1, 1, 2, 4, 8, 16, MOST_ITEMS)))
        model = dice.choice(models)
        way = dice.choice(OF_TEXTS)
        if model not in ("fake/text", "fake/words"):
            way = dice.choice(list(Way))
        yield Call(number, over_s * asked / items, model, way, size)
        asked, number = asked + size, number + 1


@dataclass
class Account:
    """What became of all the calls, counted in items; `told` has sentences on what is wrong."""

    asked: int = 0
    answered: int = 0
    refused: int = 0
    lost: int = 0
    doubled: int = 0
    stuck: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    seconds: list[tuple[float, float]] = field(default_factory=list)  # begun, took
    told: list[str] = field(default_factory=list)


class Callers:
    """Threads that make the calls, each with a client of its own."""

    def __init__(
        self,
        world: World,
        truth: Truth,
        todo: Iterator[Call],
        *,
        threads: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._world, self._truth, self._todo, self._clock = world, truth, todo, clock
        self._pictures = sorted(world.pictures.iterdir())
        self._taking, self._counting = threading.Lock(), threading.Lock()
        self.account = Account()
        self._begun = 0.0
        self._threads = [
            threading.Thread(target=self._run, name=f"caller {n}", daemon=True)
            for n in range(threads)
        ]

    def start(self) -> None:
        self._begun = self._clock()
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> int:
        """Waits until all calls were made; gives the number of callers that still wait."""
        until = self._clock() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - self._clock()))
        return sum(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        with self._world.client() as client:
            while True:
                with self._taking:
                    call = next(self._todo, None)
                if call is None:
                    return
                time.sleep(max(0.0, self._begun + call.due_s - self._clock()))
                self._make(client, call)

    def _make(self, client: Client, call: Call) -> None:
        begun, account = self._clock(), self.account
        with self._counting:
            account.asked += call.items
        while True:
            try:
                self._judge(call, self._asked(client, call))
                break
            except ClipyardError as error:
                with self._counting:
                    account.codes[error.code] += 1
                if not self._is_worth_another_try(call, error, begun):
                    break
            except Exception as error:  # else it ended this thread, and nobody heard of it
                with self._counting:
                    account.lost += call.items
                    account.told.append(f"lost: {call}: {error!r}")
                break
            time.sleep(PAUSE_S)
        with self._counting:
            account.seconds.append((begun, self._clock() - begun))

    def _is_worth_another_try(self, call: Call, error: ClipyardError, begun: float) -> bool:
        account, sentence = self.account, f"{call}: {error.code}: {error}"
        with self._counting:
            if isinstance(error, NoAnswer):
                account.lost += call.items
                account.told.append(f"lost: {sentence}")
                return False
            if error.retryable and self._clock() - begun < PATIENCE_S:
                return True
            if error.retryable:
                account.stuck += call.items
                account.told.append(f"stuck: {sentence}")
            elif error.code in self._explained(call):
                account.refused += call.items
            else:
                account.lost += call.items
                account.told.append(f"wrong refusal: {sentence}")
        return False

    @staticmethod
    def _explained(call: Call) -> tuple[str, ...]:
        """Codes of final refusals that the faults explain: two kills look like a deadly request."""
        of_files = ("bad_checkpoint", "space_mismatch") if call.model == FILE_MODEL else ()
        return (Quarantined.code, *of_files)

    def _asked(self, client: Client, call: Call) -> list[Item]:
        """The items, unless one has an error that passes; dead hosts do not count."""
        items = self._sent(client, call)
        for item in items:
            if item.error and item.error.retryable and not isinstance(item.error, ImageUnreachable):
                raise item.error
        return items

    def _sent(self, client: Client, call: Call) -> list[Item]:
        contents = self.contents(call)
        options = {"model": call.model, "timeout": CALL_S}
        match call.way:
            case Way.TEXTS:
                return client.embed_texts_detailed(contents, **options)
            case Way.SUBMITTED:
                handle = client.submit_texts(contents, **options, batch_size=8)
                return self._twice(call, partial(handle.wait, CALL_S))
            case Way.TEXTS_ELSEWHERE | Way.BYTES_ELSEWHERE:
                id = elsewhere.submitted(
                    self._world.submissions,
                    "texts" if call.way in OF_TEXTS else "pictures",
                    contents,
                    within_s=PATIENCE_S,
                    **options | {"timeout": PATIENCE_S, "batch_size": 8},
                )
                fetch = partial(elsewhere.fetched, client, id, within_s=PATIENCE_S + CALL_S)
                return self._twice(call, fetch)
            case Way.PATHS:
                return client.embed_images_detailed(contents, **options)
            case Way.BYTES:
                data = [Path(path).read_bytes() for path in contents]
                return client.embed_images_detailed(data, **options)
            case Way.URLS:
                at = f"http://127.0.0.1:{self._world.host.port}"
                urls = [f"{at}/{Path(path).name}" for path in contents]
                return client.embed_images_detailed(urls, **options)

    def _twice(self, call: Call, wait: Callable[[], list[Item]]) -> list[Item]:
        """What was submitted, as both looks at it have to find it."""
        first, again = wait(), wait()
        if [_bytes(item) for item in first] != [_bytes(item) for item in again]:
            with self._counting:
                self.account.doubled += call.items
                self.account.told.append(f"doubled: {call} has two answers")
        return first

    def contents(self, call: Call) -> list[str | Path]:
        """The texts, or the files of the pictures, of a call."""
        if call.way not in OF_TEXTS:
            return [
                self._pictures[(call.number + i) % len(self._pictures)] for i in range(call.items)
            ]
        if call.model.startswith("fake/"):  # no two alike
            return [f"item {i} of call {call.number}" for i in range(call.items)]
        return [f"{ONE_MORE}{(call.number + i) % 64}" for i in range(call.items)]

    def _judge(self, call: Call, items: Sequence[Item]) -> None:
        contents = self.contents(call)
        wrong, refused = [], 0
        for content, item in zip(contents, items, strict=False):
            if item.error is not None:
                if call.way is Way.URLS and isinstance(item.error, ImageUnreachable):
                    refused += 1
                else:
                    wrong.append(f"{item.error.code}: {item.error}")
            elif not self._truth.is_right(call.model, item.fingerprint, content, item.vector):
                wrong.append(f"not the vector of {content!r} in the space {item.fingerprint}")
        with self._counting:
            account = self.account
            account.answered += min(len(items), call.items) - refused - len(wrong)
            account.refused += refused
            account.lost += max(0, call.items - len(items)) + len(wrong)
            account.doubled += max(0, len(items) - call.items)
            account.told += [f"{call}: {one}" for one in wrong[:3]]


def _bytes(item: Item) -> bytes | str:
    return item.vector.tobytes() if item.vector is not None else item.error.code
