"""The catalogue as clients are told of it, in Redis."""

from collections.abc import Iterable
from contextlib import suppress

import redis
from redis.typing import EncodableT, FieldT

from api_client.wire.errors import ClipyardError
from api_client.wire.names import Keys

from .catalogue import Catalogue, Entry

__all__ = ["Listing"]

KEPT_S = 60  # after the last worker's last beat


class Listing:
    """What one worker lists; those of all live workers make one list."""

    def __init__(self, store: redis.Redis, keys: Keys, catalogue: Catalogue) -> None:
        self._store, self._key = store, keys.catalogue
        self._catalogue = catalogue
        self._rows = _rows(catalogue)
        self._is_told = False

    def renew(self, in_use: Iterable[str]) -> None:
        """To be called at every beat. The first call ends what others listed: whoever is alive
        does it again with its own next beat, and what nobody has any more is gone.

        Args:
            in_use: ids of models that are listed as well, though they needed no entry.
        """
        found = []
        for model_id in in_use:
            with suppress(ClipyardError):  # unknown, or of a family that cannot be made here
                found.append(self._catalogue[model_id])
        with self._store.pipeline() as pipe:
            if not self._is_told:
                pipe.delete(self._key)
            pipe.hset(self._key, mapping={**self._rows, **_rows(found)})
            pipe.expire(self._key, KEPT_S)
            pipe.execute()
        self._is_told = True


def _rows(entries: Iterable[Entry]) -> dict[FieldT, EncodableT]:
    return {entry.id: entry.public().model_dump_json() for entry in entries}
