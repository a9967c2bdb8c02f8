from collections.abc import Iterator

import pytest

from tests.security.installation import Installation, served, started


@pytest.fixture(scope="session")
def at_one_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Installation]]:
    with served(tmp_path_factory.mktemp("redis"), "clipyard", "neighbour") as made:
        yield made


@pytest.fixture(scope="session")
def installation(at_one_redis: list[Installation]) -> Iterator[Installation]:
    with started(at_one_redis[0]) as made:
        yield made


@pytest.fixture(scope="module")
def neighbour(at_one_redis: list[Installation]) -> Iterator[Installation]:
    """Another installation at the same Redis."""
    with started(at_one_redis[1]) as made:
        yield made
