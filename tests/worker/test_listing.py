import pytest

from api_client.wire.errors import BackendFailed
from api_client.wire.messages import CatalogueEntry
from worker.catalogue import Catalogue, Entry
from worker.listing import KEPT_S, Listing


@pytest.fixture
def worker(store, keys, clock):
    """One that has these models."""
    return lambda *ids: Listing(store, keys, Catalogue(map(Entry, ids)), clock=clock)


@pytest.fixture
def listed(store, keys):
    """What clients read."""
    return lambda: {CatalogueEntry.model_validate_json(r).id for r in store.hvals(keys.catalogue)}


def test_what_any_live_worker_has_is_listed(worker, listed, store, keys):
    one, other = worker("a", "b"), worker("a", "c")
    for _ in range(2):
        one.renew([])
        other.renew([])
    assert listed() == {"a", "b", "c"}
    assert 0 < store.ttl(keys.catalogue) <= 60


def test_what_is_listed_already_is_not_written_again(worker, listed, store, keys):
    one, other = worker("a", "b"), worker("b", "c")
    one.renew([])
    other.renew([])
    one.renew([])  # of whose model the other knew nothing
    store.expire(keys.catalogue, 5)
    store.config_resetstat()
    one.renew([])
    other.renew([])
    assert "cmdstat_hset" not in store.info("commandstats")
    assert store.ttl(keys.catalogue) > 5
    store.delete(keys.catalogue)
    other.renew([])
    assert listed() == {"b", "c"}


def test_a_worker_that_starts_ends_nothing_that_others_list(worker, listed, clock):
    one, other = worker("a", "b"), worker("a", "c")
    one.renew([])
    other.renew([])
    assert listed() == {"a", "b", "c"}
    one.renew([])
    clock.now += KEPT_S
    other.renew([])
    assert listed() == {"a", "b", "c"}


def test_what_no_live_worker_has_any_more_is_listed_no_longer(worker, listed, clock):
    worker("a", "gone").renew([])
    left = worker("a")
    left.renew([])
    clock.now += KEPT_S - 1
    left.renew([])
    assert listed() == {"a", "gone"}
    clock.now += 1
    left.renew([])
    assert listed() == {"a"}


def test_what_a_worker_comes_to_use_meanwhile_stays_listed(store, keys, listed, clock):
    catalogue = Catalogue([Entry("a")], describe=Entry)
    Listing(store, keys, Catalogue([Entry("b")])).renew([])
    worker = Listing(store, keys, catalogue, clock=clock)
    worker.renew([])
    clock.now += KEPT_S
    worker.renew(["b"])
    assert listed() == {"a", "b"}


def test_a_model_in_use_that_needs_no_entry_is_listed(store, keys, listed):
    def describe(model_id):
        if model_id == "broken/c":
            raise BackendFailed("the model family broken cannot be made")
        return Entry(model_id) if model_id == "b" else None

    catalogue = Catalogue([Entry("a")], describe=describe)
    Listing(store, keys, catalogue).renew(["b", "nobody knows it", "broken/c"])
    assert listed() == {"a", "b"}
