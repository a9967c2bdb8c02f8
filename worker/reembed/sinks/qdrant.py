"""A Qdrant collection: a server by its URL, or local mode by a folder."""

import atexit
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from threading import Lock, RLock
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from api_client.wire.errors import JobRefused, StoreDown
from api_client.wire.jobs import Place

from ..doors import Doors
from ..items import Shard, Space, Vector, storable
from ..plugins import options_of
from . import refuse_another_space

PAGE = 1024  # points a round trip
UPSERTED_AT_ONCE = 256
UPSERTED_BYTES = 2**24  # of JSON, about: a server takes 2**25
NUMBER_BYTES = 20
ANSWER_S = 60  # its client waits for 5; a server that builds its index takes longer
PASSING = frozenset({408, 409, 429})  # too slow, somebody else is just at it, too often
OURS = ("id", "model", "fingerprint")  # payload fields beside `ref` and the item's metadata

_connecting = Lock()


class Qdrant:
    """A point an item, upserted under an id made from the item's.

    `where` is a URL, or a folder for local mode, which serves one worker process at a time. The
    API key comes from QDRANT_API_KEY on the worker. Options: `collection`, and `vector` where an
    old collection names its vectors.
    """

    def __init__(self, place: Place, space: Space | None, doors: Doors) -> None:
        options = options_of(place, collection="clipyard", vector="")
        is_server = "://" in place.where
        where = doors.reaching(place.where) if is_server else str(doors.writing(place.where))
        self._name, self._vector = options["collection"], options["vector"]
        self._space = space
        self._where = f"{where}, collection {self._name}"
        with self._asking():
            self._client, self._lock = _connected(where)
        with self._asking(), self._lock:
            self._prepare()

    def _prepare(self) -> None:
        if not self._client.collection_exists(self._name):
            if self._space is None:
                raise JobRefused(f"there is no Qdrant collection at {self._where}")
            size = self._space.dimension
            self._client.create_collection(
                self._name,
                models.VectorParams(size=size, distance=models.Distance.COSINE),
                metadata={"model": self._space.model, "fingerprint": self._space.fingerprint},
            )
        config = self._client.get_collection(self._name).config
        vectors = config.params.vectors
        named = {"": vectors} if isinstance(vectors, models.VectorParams) else vectors or {}
        self._dense = [n for n, params in named.items() if params.multivector_config is None]
        if self._space is None:
            return
        if not isinstance(vectors, models.VectorParams):
            raise JobRefused(f"{self._where} has named vectors; name a new collection")
        self._chosen()
        points, _ = self._client.scroll(self._name, limit=1, with_payload=True)
        first = {"fingerprint": "", **(points[0].payload or {})} if points else None
        told = first or config.metadata or {}
        refuse_another_space(self._where, told, dimension=vectors.size, wanted=self._space)

    def write(self, shard: Shard) -> None:
        assert self._space is not None
        ours = {"model": self._space.model, "fingerprint": self._space.fingerprint}
        points = [
            models.PointStruct(
                id=point_id(item.id),
                vector=row.tolist(),
                payload={**item.meta, "ref": storable(item.ref), "id": item.id, **ours},
            )
            for item, row in shard.embedded()
        ]
        for some in _requests(points, vector_bytes=NUMBER_BYTES * self._space.dimension):
            with self._asking(), self._lock:
                self._client.upsert(self._name, some, wait=True)

    def read(self, ids: Sequence[str], *, chunk: int | None = None) -> Mapping[str, Vector]:
        """
        Raises:
            JobRefused: which of several vectors of a point is meant, nobody said.
        """
        vector = self._chosen()
        names = {str(point_id(item_id)): item_id for item_id in ids}
        with self._asking(), self._lock:
            points = self._client.retrieve(
                self._name,
                [point_id(i) for i in ids],
                with_payload=False,
                with_vectors=[vector] if vector else True,
            )
        held = {names[str(p.id)]: _of(p.vector, vector) for p in points}
        return {i: np.asarray(row, dtype=np.float32) for i, row in held.items() if row is not None}

    def _chosen(self) -> str:
        """The name of the vector that is read; empty for the one without."""
        found = [name for name in self._dense if self._vector in ("", name)]
        if len(found) != 1:
            there = ", ".join(name or "one without a name" for name in self._dense) or "none"
            what = f"no {self._vector!r}" if self._vector else "not just one"
            hint = "" if self._space else ", as in `--old-option vector=NAME`"
            raise JobRefused(
                f"of dense vectors {self._where} has {what}, but {there}: the collection's option "
                f"'vector' says which one is compared{hint}"
            )
        return found[0]

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        following: Any = None
        while True:
            with self._asking(), self._lock:
                points, following = self._client.scroll(
                    self._name, limit=PAGE, offset=following, with_payload=True
                )
            for point in points:
                payload = dict(point.payload or {})
                # An id of ours is kept; anything else is known by the point's own.
                is_ours = "fingerprint" in payload and "id" in payload
                item_id = str(payload["id"]) if is_ours else str(point.id)
                rest = {n: v for n, v in payload.items() if not (is_ours and n in OURS)}
                yield item_id, rest
            if following is None:
                return

    def target(self, alias: str) -> str | None:
        with self._asking(), self._lock:
            aliases = self._client.get_aliases().aliases
            found = next((a.collection_name for a in aliases if a.alias_name == alias), None)
            if found is None and self._client.collection_exists(alias):
                raise JobRefused(f"{alias!r} is a collection, not an alias, so it cannot switch")
        return found

    def switch(self, alias: str) -> None:
        with self._asking(), self._lock:
            lead = models.CreateAlias(collection_name=self._name, alias_name=alias)
            drop = models.DeleteAlias(alias_name=alias)
            operations: list[Any] = [models.CreateAliasOperation(create_alias=lead)]
            if self.target(alias) is not None:  # both in one request: one step for searchers
                operations.insert(0, models.DeleteAliasOperation(delete_alias=drop))
            self._client.update_collection_aliases(operations)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (ResponseHandlingException, ResourceExhaustedResponse, OSError) as error:
            raise StoreDown(f"Qdrant at {self._where}: {error}") from error
        except UnexpectedResponse as error:
            status, told = error.status_code, ", ".join(str(error).splitlines())
            if status is not None and status < 500 and status not in PASSING:
                raise JobRefused(f"Qdrant at {self._where}: {told}") from error
            raise StoreDown(f"Qdrant at {self._where}: {told}") from error
        except (RuntimeError, sqlite3.Error) as error:  # local mode: another has it; a full disk
            raise StoreDown(f"Qdrant at {self._where}: {error}") from error


def _requests(
    points: Sequence[models.PointStruct], *, vector_bytes: int
) -> Iterator[list[models.PointStruct]]:
    """So many at once as a server takes, however long their metadata are."""
    some: list[models.PointStruct] = []
    size = 0
    for point in points:
        takes = vector_bytes + len(json.dumps(point.payload, ensure_ascii=False).encode())
        if some and (len(some) == UPSERTED_AT_ONCE or size + takes > UPSERTED_BYTES):
            yield some
            some, size = [], 0
        some.append(point)
        size += takes
    if some:
        yield some


def _of(vector: Any, name: str) -> Any:
    """What a point has under a name; None where it has nothing."""
    return vector.get(name) if isinstance(vector, dict) else vector


def point_id(item_id: str) -> str | int:
    """Qdrant takes unsigned integers and UUIDs; what is not written as one gets a UUID of its own.

    Not what only means one: `7` and `007` are two items.
    """
    with suppress(ValueError):
        if 0 <= (number := int(item_id)) < 2**64 and str(number) == item_id:
            return number
    with suppress(ValueError):
        if str(UUID(item_id)) == item_id:
            return item_id
    return str(uuid5(NAMESPACE_URL, f"clipyard:{item_id}"))


def _connected(where: str) -> tuple[QdrantClient, Any]:
    """One client a place: local mode takes its folder for itself, and knows no threads."""
    with _connecting:  # two who come at once would both miss the cache
        return _made(where)


@cache
def _made(where: str) -> tuple[QdrantClient, Any]:
    if "://" in where:
        key = os.environ.get("QDRANT_API_KEY")
        # Its look at the server's version warns in a thread of its own, where nobody hears it.
        client = QdrantClient(url=where, api_key=key, timeout=ANSWER_S, check_compatibility=False)
        return client, RLock()
    client = QdrantClient(path=where, force_disable_check_same_thread=True)
    atexit.register(client.close)  # it complains when the interpreter has gone before it
    return client, RLock()
