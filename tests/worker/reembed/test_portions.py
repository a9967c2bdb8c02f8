from api_client.wire.quarantine import Crash
from worker.reembed.embedding import SLICE, portions


def crash(*place):
    return Crash(worker="w", at=1.0, place=place or None)


def cut(count, *crashes):
    return [(portion.place, portion.is_condemned) for portion in portions(count, crashes)]


def test_a_chunk_is_cut_into_slices():
    assert cut(300) == [((0, SLICE), False), ((SLICE, 2 * SLICE), False), ((256, 300), False)]


def test_rows_that_a_worker_died_over_go_one_by_one_and_the_others_together():
    assert cut(10, crash(4, 6)) == [
        ((0, 4), False),
        ((4, 5), False),
        ((5, 6), False),
        ((6, 10), False),
    ]


def test_a_row_is_condemned_when_two_workers_died_over_it_alone():
    once = [crash(4, 8), crash(5, 6)]
    assert not any(condemned for _, condemned in cut(10, *once))
    twice = [*once, crash(5, 6)]
    assert [place for place, condemned in cut(10, *twice) if condemned] == [(5, 6)]


def test_two_slices_that_died_together_condemn_nobody():
    assert not any(condemned for _, condemned in cut(10, crash(0, 10), crash(0, 10)))


def test_a_row_that_was_alone_at_one_crash_is_tried_again():
    assert not any(condemned for _, condemned in cut(3, crash(1, 2)))


def test_a_crash_outside_of_the_items_blames_none():
    assert cut(3, crash(), crash()) == [((0, 3), False)]
