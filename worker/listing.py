"""The catalogue as clients are told of it, in Redis."""

import redis
from redis.typing import EncodableT, FieldT

from api_client.wire.names import Keys

from .catalogue import Catalogue

__all__ = ["Listing"]

KEPT_S = 60  # after the last worker's last beat


class Listing:
    """What one worker lists; those of all live workers make one list."""

    def __init__(self, store: redis.Redis, keys: Keys, catalogue: Catalogue) -> None:
        self._store, self._key = store, keys.catalogue
        self._rows: dict[FieldT, EncodableT] = {
            entry.id: entry.public().model_dump_json() for entry in catalogue
        }
        self._is_told = False

    def renew(self) -> None:
        """To be called at every beat. The first call ends what others listed: whoever is alive
        does it again with its own next beat, and what nobody has any more is gone."""
        with self._store.pipeline() as pipe:
            if not self._is_told:
                pipe.delete(self._key)
            pipe.hset(self._key, mapping=self._rows)
            pipe.expire(self._key, KEPT_S)
            pipe.execute()
        self._is_told = True
