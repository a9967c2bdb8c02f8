import pytest

from api_client.wire.errors import BackendFailed
from api_client.wire.messages import CatalogueEntry
from worker.catalogue import Catalogue, Entry
from worker.listing import Listing


@pytest.fixture
def worker(store, keys):
    """One that has these models."""
    return lambda *ids: Listing(store, keys, Catalogue(map(Entry, ids)))


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


def test_what_no_live_worker_has_any_more_is_listed_no_longer(worker, listed):
    worker("a", "gone").renew([])
    worker("a").renew([])
    assert listed() == {"a"}


def test_a_model_in_use_that_needs_no_entry_is_listed(store, keys, listed):
    def describe(model_id):
        if model_id == "broken/c":
            raise BackendFailed("the model family broken cannot be made")
        return Entry(model_id) if model_id == "b" else None

    catalogue = Catalogue([Entry("a")], describe=[describe])
    Listing(store, keys, catalogue).renew(["b", "nobody knows it", "broken/c"])
    assert listed() == {"a", "b"}
