import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from worker.backends.cores import MOST_RUNS, Cores
from worker.processors import Claims


def shares(cores: Cores, threads: int) -> list[int]:
    """What each of some threads gets that all run at once, one after the other starting."""
    order = threading.Lock()
    all_in = threading.Barrier(threads)

    def run(_: int) -> int:
        with order:
            share = cores.share()
            share.__enter__()
            got = torch.get_num_threads()
        all_in.wait(30)
        share.__exit__(None, None, None)
        return got

    with ThreadPoolExecutor(threads) as pool:
        return sorted(pool.map(run, range(threads)), reverse=True)


def test_a_run_alone_gets_all_cores() -> None:
    cores = Cores(4)
    assert shares(cores, 1) == [4]
    assert shares(cores, 1) == [4]


def test_runs_beside_the_first_have_a_core_each() -> None:
    assert shares(Cores(4), 6) == [4, 1, 1, 1, 1, 1]
    assert shares(Cores(4 * MOST_RUNS), 3) == [4 * MOST_RUNS, 4, 4]


def test_a_run_beside_a_picture_decoder_has_a_core_as_a_run_beside_another_has() -> None:
    claims = Claims()
    cores = Cores(4, claims=claims)
    with claims, claims:
        assert shares(cores, 1) == [1]
    assert shares(cores, 1) == [4]


def test_only_the_first_thread_ever_gets_all_cores() -> None:
    cores = Cores(4)
    with cores.share():
        pass
    assert shares(cores, 1) == [1]


def test_there_are_as_many_runs_at_once_as_cores_within_a_limit() -> None:
    assert Cores(2).parallel == 2
    assert Cores(1000).parallel == MOST_RUNS
