import numpy as np

from tests.soak.picture import draw
from tests.soak.slopes import slope

SECONDS = np.arange(0, 1200, 10.0)


def test_noise_does_not_grow() -> None:
    noise = np.random.default_rng(1).normal(900, 5, len(SECONDS))
    found = slope(SECONDS, noise)
    assert found.low < 0 < found.high
    assert not found.grows(0.0)


def test_a_leak_in_noise_is_found_with_its_rate() -> None:
    leak = 900 + SECONDS / 3600 * 60 + np.random.default_rng(1).normal(0, 2, len(SECONDS))
    found = slope(SECONDS, leak)
    assert found.low < 60 < found.high
    assert found.grows(12.0)


def test_a_step_at_the_start_of_the_day_or_a_wild_point_is_no_growth() -> None:
    values = np.full(len(SECONDS), 20.0)
    values[:10] = 5
    values[50] = 5000
    assert slope(SECONDS, values).per_hour == 0
    assert not slope(SECONDS, values).grows(0.0)


def test_growth_that_nobody_minds_is_told_and_forgiven() -> None:
    found = slope(SECONDS, 900 + SECONDS / 3600)
    assert found.low > 0
    assert not found.grows(12.0)


def test_every_series_has_its_graph() -> None:
    series = {f"cpu{n}: threads": [(0.0, 1.0), (10.0, 2.0)] for n in range(4)}
    assert draw(series, {}, warm_s=5.0).size == (1200, 300)
