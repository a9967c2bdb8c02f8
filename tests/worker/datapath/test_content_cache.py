from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import redis
from PIL import Image

from api_client.wire.errors import ImageUnreadable
from api_client.wire.messages import ImageRef, Kind, PathRef, Priority
from api_client.wire.names import Keys
from worker.backends.base import Collated, Model, Placement
from worker.backends.fake import Fake
from worker.catalogue import Entry
from worker.datapath.batcher import Batcher, Rows
from worker.datapath.content_cache import LEFT_ALONE_S, ContentCache, Pictures
from worker.datapath.images import ImageReader
from worker.settings import WorkerSettings

BUDGET_BYTES = 2_000_000


class Desk:
    """Embeds pictures as a task does, and counts what took a forward pass."""

    def __init__(self, folder: Path, cache: ContentCache) -> None:
        self.cache = cache
        self.folder = folder
        self.looked: list[tuple[int, int]] = []
        self.ran = 0
        self._images = ImageReader(WorkerSettings.read(image_roots=(folder,)))
        self._batcher = Batcher(batch_size=8, decode_threads=2)
        self.model = self.a_model()

    def a_model(self, precision: str = "float32") -> Model:
        family = Fake(Placement(device="cpu", precision=precision))
        model = family.load(Entry("fake/vision", backend="fake"))
        model.lift()
        run = model.run

        def counted(kind: Kind, batch: Collated) -> np.ndarray:
            self.ran += len(batch)
            return run(kind, batch)

        model.run = counted
        return model

    def picture(self, name: str, shade: int) -> ImageRef:
        Image.new("L", (8, 8), shade).save(self.folder / name)
        return PathRef(path=str(self.folder / name))

    def embed(self, *refs: ImageRef, model: Model | None = None) -> Rows:
        model = model or self.model
        pictures = Pictures(
            model,
            self._images,
            self.cache,
            on_look=lambda *, hits, misses: self.looked.append((hits, misses)),
        )
        rows = self._batcher.embed(
            model,
            Kind.IMAGE,
            range(len(refs)),
            lambda i: pictures.prepare(i, refs[i], {}),
            model_id="fake/vision",
            priority=Priority.BULK,
        )
        pictures.keep(rows.vectors)
        return rows

    def close(self) -> None:
        self._batcher.close()
        self._images.close()


@pytest.fixture
def desk(tmp_path: Path, store: redis.Redis, keys: Keys) -> Iterator[Desk]:
    cache = ContentCache(store, keys, budget_bytes=BUDGET_BYTES)
    with closing(Desk(tmp_path, cache)) as desk:
        yield desk


def test_a_known_picture_gets_the_same_vector_without_a_forward_pass(desk: Desk) -> None:
    a, b = desk.picture("a.png", 10), desk.picture("b.png", 20)
    first = desk.embed(a, b)
    again = desk.embed(b, a, desk.picture("copy of a.png", 10))
    assert desk.ran == 2
    assert desk.looked == [(0, 2), (3, 0)]
    expected = [first.vectors[1], first.vectors[0], first.vectors[0]]
    assert np.array_equal(np.stack(again.vectors), np.stack(expected))


def test_changed_bytes_are_another_picture_whatever_their_name(desk: Desk) -> None:
    before = desk.embed(desk.picture("a.png", 10)).vectors[0]
    after = desk.embed(desk.picture("a.png", 200)).vectors[0]
    assert desk.ran == 2
    assert not np.array_equal(before, after)


def test_another_precision_knows_nothing_of_it(desk: Desk) -> None:
    a = desk.picture("a.png", 10)
    desk.embed(a)
    desk.embed(a, model=desk.a_model("bfloat16"))
    assert desk.ran == 2


def test_a_kept_vector_of_another_size_is_none_of_this_model(
    desk: Desk, store: redis.Redis, keys: Keys
) -> None:
    (first,) = desk.embed(a := desk.picture("a.png", 10)).vectors
    assert isinstance(first, np.ndarray)
    (member,) = store.hkeys(keys.cached("vectors"))
    for kept in (first.tobytes()[:-4], b"", first.tobytes() + bytes(4)):
        store.hset(keys.cached("vectors"), member, kept)
        assert np.array_equal(np.stack(desk.embed(a).vectors), [first])
    assert desk.ran == 4


def test_what_is_only_found_is_kept_for_longer_too(
    desk: Desk, store: redis.Redis, keys: Keys
) -> None:
    desk.embed(a := desk.picture("a.png", 10))
    cached = [keys.cached(what) for what in ("vectors", "used", "bytes")]
    for key in cached:
        store.expire(key, 60)
    desk.embed(a)
    assert all(store.ttl(key) > 60 for key in cached)
    assert desk.ran == 1


def test_what_failed_is_not_kept(desk: Desk) -> None:
    broken = PathRef(path=str(desk.folder / "broken.png"))
    Path(broken.path).write_bytes(b"no picture")
    for _ in range(2):
        (row,) = desk.embed(broken).vectors
        assert isinstance(row, ImageUnreadable)
    assert desk.looked == [(0, 1), (0, 1)]


def test_a_redis_that_is_away_costs_the_look_up_only(desk: Desk, keys: Keys) -> None:
    with redis.Redis(port=1, retry=None) as nobody:
        desk.cache = ContentCache(nobody, keys, budget_bytes=BUDGET_BYTES)
        rows = desk.embed(desk.picture("a.png", 10))
    assert isinstance(rows.vectors[0], np.ndarray)


def test_a_redis_that_is_away_is_left_alone_for_a_while(
    store: redis.Redis, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    now, vector = [0.0], np.ones(2, np.float32)
    with redis.Redis(port=1, retry=None) as nobody:
        cache = ContentCache(nobody, keys, budget_bytes=BUDGET_BYTES, clock=lambda: now[0])
        for _ in range(3):
            assert cache.find("space", b"a", dimension=2) is None
            cache.keep("space", {b"a": vector})
    assert len(caplog.messages) == 1
    cache._redis = store
    cache.keep("space", {b"a": vector})
    now[0] += LEFT_ALONE_S
    assert cache.find("space", b"a", dimension=2) is None
    cache.keep("space", {b"a": vector})
    assert cache.find("space", b"a", dimension=2) is not None


def test_a_redis_that_goes_away_before_vectors_are_kept_is_left_alone_as_well(
    keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.Redis(port=1, retry=None) as nobody:
        cache = ContentCache(nobody, keys, budget_bytes=BUDGET_BYTES)
        for _ in range(3):
            cache.keep("space", {b"a": np.ones(2, np.float32)})
    assert len(caplog.messages) == 1


def test_beyond_the_budget_the_least_recently_used_go(
    store: redis.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ContentCache(store, keys, budget_bytes=3 * (4 * 512 + 330))
    vector = np.ones(512, np.float32)
    names = [bytes([number]) * 32 for number in range(4)]
    with a_clock(monkeypatch) as tick:
        for name in names[:3]:
            tick()
            cache.keep("space", {name: vector})
        tick()
        assert cache.find("space", names[0], dimension=512) is not None
        tick()
        cache.keep("space", {names[3]: vector})
    left = [cache.find("space", name, dimension=512) is not None for name in names]
    assert left == [True, False, True, True]


def test_it_takes_no_more_of_redis_than_its_budget(store: redis.Redis, keys: Keys) -> None:
    cache = ContentCache(store, keys, budget_bytes=BUDGET_BYTES)
    vectors = np.random.default_rng(0).normal(size=(3000, 512)).astype(np.float32)
    for number, vector in enumerate(vectors):
        cache.keep("0123456789abcdef", {number.to_bytes(32): vector})
    parts = [keys.cached(part) for part in ("vectors", "used", "bytes")]
    taken = sum(store.memory_usage(part, samples=0) for part in parts)
    assert 0.8 * BUDGET_BYTES < taken <= BUDGET_BYTES
    assert all(store.ttl(part) > 0 for part in parts)


def test_a_budget_that_was_lowered_is_kept_a_piece_at_a_time(
    store: redis.Redis, keys: Keys
) -> None:
    vectors = {number.to_bytes(32): np.ones(1, np.float32) for number in range(5000)}
    ContentCache(store, keys, budget_bytes=BUDGET_BYTES).keep("space", vectors)
    lowered, used = ContentCache(store, keys, budget_bytes=1000), keys.cached("used")
    left = [store.zcard(used)]
    while left[-1] > 2 and len(left) < 10:
        lowered.keep("space", {b"one more": np.ones(1, np.float32)})
        left.append(store.zcard(used))
    assert left[1] > 3000
    assert left[-1] == 2


@contextmanager
def a_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A clock of the cache that moves on when told to."""
    now = [1e9]

    def tick() -> None:
        now[0] += 1

    monkeypatch.setattr("worker.datapath.content_cache.time.time", lambda: now[0])
    yield tick
