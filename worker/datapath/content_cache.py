"""Vectors of pictures that were embedded before, found again by the pictures' bytes.

Off unless CLIPYARD_CONTENT_CACHE_MB says how much of Redis it may take. Whoever indexes the same
pictures again then pays for reading and a look-up, not for decoding and a forward pass. A vector is
kept under its vector space's fingerprint, so another model, precision or way of decoding never
finds it; it is float32, as the model gave it.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from threading import Lock
from typing import Any, Protocol

import numpy as np
import redis
from numpy.typing import NDArray

from api_client.wire.messages import ImageRef
from api_client.wire.names import Keys

from ..backends.base import Model, Prepared
from .images import ImageReader
from .outcomes import Known, Outcome

__all__ = ["ContentCache", "Pictures"]

log = logging.getLogger(__name__)

KEPT_S = 30 * 24 * 3600  # after the last use of any of it
LEFT_ALONE_S = 5.0  # where Redis was away: each picture would wait for it again
# What Valkey 9 takes for an entry of a hash and of a sorted set, beside the vector itself.
OVERHEAD_BYTES = 330

# KEYS: vectors, by when they were used, bytes. ARGV: now, budget, entry's overhead, seconds to
# keep, then member and vector in turns. The least recently used go when it is too much.
_KEEP = """
local bytes = tonumber(redis.call('GET', KEYS[3]) or '0')
for i = 5, #ARGV, 2 do
  if redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) == 1 then
    bytes = bytes + #ARGV[i + 1] + ARGV[3]
  end
  redis.call('ZADD', KEYS[2], ARGV[1], ARGV[i])
end
-- So many at a time: a budget that was lowered by gigabytes would hold Redis up for seconds.
local left = 1000 + 4 * #ARGV
while bytes > tonumber(ARGV[2]) and left > 0 do
  left = left - 1
  local oldest = redis.call('ZPOPMIN', KEYS[2])[1]
  if not oldest then
    redis.call('DEL', KEYS[1])
    bytes = 0
    break
  end
  bytes = bytes - redis.call('HSTRLEN', KEYS[1], oldest) - ARGV[3]
  redis.call('HDEL', KEYS[1], oldest)
end
redis.call('SET', KEYS[3], bytes)
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ARGV[4])
end
"""


class ContentCache:
    """What all workers share. A Redis that is away costs the look-up, never an item.

    Args:
        client: of little patience.
        budget_bytes: of Redis' memory; beyond it the least recently used vectors go.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        *,
        budget_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis: Any = client
        self._keys = (keys.cached("vectors"), keys.cached("used"), keys.cached("bytes"))
        self._budget_bytes, self._clock = budget_bytes, clock
        self._alone_until = 0.0

    def find(self, space: str, digest: bytes, *, dimension: int) -> NDArray[np.float32] | None:
        """The vector of the picture with these bytes, (dimension,), if it is kept."""
        member, (vectors, used, _) = _member(space, digest), self._keys
        if self._clock() < self._alone_until:
            return None
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.hget(vectors, member)
                pipe.zadd(used, {member: time.time()}, xx=True)
                data, _ = pipe.execute()
        except redis.RedisError as error:
            self._leave_alone(error)
            return None
        if data is None or len(data) != 4 * dimension:
            return None
        return np.frombuffer(data, np.float32)

    def keep(self, space: str, vectors: Mapping[bytes, NDArray[np.float32]]) -> None:
        """Keep vectors by their pictures' digests; without any, those there for longer."""
        if self._clock() < self._alone_until:
            return
        entries = [
            part
            for digest, vector in vectors.items()
            for part in (_member(space, digest), vector.astype(np.float32).tobytes())
        ]
        fixed = (time.time(), self._budget_bytes, OVERHEAD_BYTES, KEPT_S)
        try:
            self._redis.eval(_KEEP, len(self._keys), *self._keys, *fixed, *entries)
        except redis.RedisError as error:
            self._leave_alone(error)

    def _leave_alone(self, error: redis.RedisError) -> None:
        log.warning("the content cache is left alone for %g s: %s", LEFT_ALONE_S, error)
        self._alone_until = self._clock() + LEFT_ALONE_S


class Looked(Protocol):
    def __call__(self, *, hits: int, misses: int) -> None: ...


class Pictures:
    """The pictures of one call, from their references to rows of a forward pass.

    Args:
        on_look: told at the end of the call how many of them were known.
    """

    def __init__(
        self, model: Model, images: ImageReader, cache: ContentCache | None, *, on_look: Looked
    ) -> None:
        self._model, self._images, self._cache = model, images, cache
        self._on_look = on_look
        self._lock = Lock()
        self._hits = 0
        self._missed: dict[int, bytes] = {}

    def prepare(self, position: int, ref: ImageRef, blobs: Mapping[int, bytes]) -> Prepared | Known:
        """
        Raises:
            ItemError: as `ImageReader.open`.
        """
        traits, data = self._model.traits, self._images.read(ref, blobs)
        if self._cache is not None:
            digest = sha256(data).digest()
            vector = self._cache.find(traits.fingerprint, digest, dimension=traits.dimension)
            with self._lock:
                if vector is not None:
                    self._hits += 1
                    return Known(vector)
                self._missed[position] = digest
        return self._model.prepare_image(self._images.decode(data, ref, near=traits.input_size))

    def keep(self, rows: Sequence[Outcome]) -> None:
        """Remember what the forward passes gave, one outcome per position."""
        if self._cache is None:
            return
        found = {
            digest: row
            for position, digest in self._missed.items()
            if isinstance(row := rows[position], np.ndarray)
        }
        self._cache.keep(self._model.traits.fingerprint, found)
        self._on_look(hits=self._hits, misses=len(self._missed))


def _member(space: str, digest: bytes) -> bytes:
    return space.encode() + b":" + digest
