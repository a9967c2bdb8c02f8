"""The catalogue as clients are told of it, in Redis."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import redis
from redis.typing import EncodableT, FieldT

from api_client.wire.errors import ClipyardError
from api_client.wire.names import Keys

from .catalogue import Catalogue, Entry

__all__ = ["Listing"]

KEPT_S = 60  # after the last worker's last beat; a row, after it was doubted

DOUBT = b" "  # behind a row, which is JSON all the same; whoever has the model writes it without
Rows = dict[FieldT, EncodableT]  # by id
Told = Mapping[bytes, bytes]


class Listing:
    """What one worker lists; those of all live workers make one list."""

    def __init__(
        self,
        store: redis.Redis,
        keys: Keys,
        catalogue: Catalogue,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._key = store, keys.catalogue
        self._catalogue, self._clock = catalogue, clock
        self._rows = _rows(catalogue)
        self._doubts: Rows | None = None  # as they were left; None before the first beat
        self._doubted_until = 0.0

    def renew(self, in_use: Iterable[str]) -> None:
        """To be called at every beat. The first call doubts what others listed: whoever is alive
        lists it again with its own next beat, and what nobody has any more goes in the end.

        Args:
            in_use: ids of models that are listed as well, though they needed no entry.
        """
        found = []
        for model_id in in_use:
            with suppress(ClipyardError):  # unknown, or of a family that cannot be made here
                found.append(self._catalogue[model_id])
        rows = {**self._rows, **_rows(found)}
        told: Told = self._store.hgetall(self._key)  # type: ignore[assignment]
        with self._store.pipeline() as pipe:
            left = self._doubts
            doubts = (
                self._doubt(pipe, rows, told) if left is None else self._settle(pipe, left, told)
            )
            # Reading costs Redis less than writing, which its append-only file and replicas repeat.
            if news := dict(rows.items() - told.items()):
                pipe.hset(self._key, mapping=news)
            pipe.expire(self._key, KEPT_S)
            pipe.execute()
        self._doubts = doubts

    def _doubt(self, pipe: "redis.client.Pipeline", rows: Rows, told: Told) -> Rows:
        doubts: Rows = {id: row + DOUBT for id, row in told.items() if id not in rows}
        if doubts:
            pipe.hset(self._key, mapping=doubts)
        self._doubted_until = self._clock() + KEPT_S
        return doubts

    def _settle(self, pipe: "redis.client.Pipeline", left: Rows, told: Told) -> Rows:
        """Those that nobody has listed again; none once they have gone."""
        doubts = dict(left.items() & told.items())
        if doubts and self._clock() >= self._doubted_until:
            pipe.hdel(self._key, *doubts)
            return {}
        return doubts


def _rows(entries: Iterable[Entry]) -> Rows:
    return {entry.id.encode(): entry.public().model_dump_json().encode() for entry in entries}
