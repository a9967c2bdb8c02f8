import errno
import hashlib
import multiprocessing
import os
import time
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from worker.backends.checkpoints import Checkpoints


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"weights")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def prepare(checkpoints: Checkpoints, source: Path, *, form: str = "a", size: int = 1000) -> Path:
    with checkpoints.prepared(source, form=form, write=lambda file: _fill(file, size)) as file:
        return file


def _fill(file: Path, size: int) -> None:
    save_file({"p": np.zeros(size, np.uint8)}, file)


def test_a_source_is_prepared_once(source: Path, folder: Path) -> None:
    checkpoints = Checkpoints(folder)
    first = prepare(checkpoints, source)

    def again(file: Path) -> None:
        raise AssertionError("it was there already")

    with checkpoints.prepared(source, form="a", write=again) as second:
        assert second == first


def test_another_form_or_a_changed_source_is_another_file(source: Path, folder: Path) -> None:
    checkpoints = Checkpoints(folder)
    files = {prepare(checkpoints, source, form="a"), prepare(checkpoints, source, form="b")}
    source.write_bytes(b"other weights")
    files.add(prepare(checkpoints, source, form="a"))
    assert len(files) == 3


def test_a_source_that_is_replaced_under_its_old_time_is_another_file(
    source: Path, folder: Path
) -> None:
    checkpoints, before = Checkpoints(folder), source.stat()
    files, sums = {prepare(checkpoints, source)}, {checkpoints.sha256(source)}
    source.write_bytes(b"WEIGHTS")
    while source.stat().st_ctime_ns == before.st_ctime_ns:  # clocks of file systems are coarse
        os.utime(source)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    files.add(prepare(checkpoints, source))
    sums.add(checkpoints.sha256(source))
    assert (len(files), len(sums)) == (2, 2)


def test_a_full_disk_leaves_nothing_behind(source: Path, folder: Path) -> None:
    def write(file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(OSError, match="No space left"),
        Checkpoints(folder).prepared(source, form="a", write=write),
    ):
        pass
    assert [file.suffix for file in folder.iterdir()] == [".lock"]


def test_what_a_killed_process_left_is_swept_by_the_next(source: Path, folder: Path) -> None:
    checkpoints = Checkpoints(folder)
    made = prepare(checkpoints, source)
    made.unlink()
    made.with_suffix(".4711.tmp").write_bytes(b"half")
    prepare(checkpoints, source)
    assert not list(folder.glob("*.tmp"))


def test_what_a_killed_process_left_of_another_source_is_swept_unless_it_is_being_written(
    source: Path, folder: Path
) -> None:
    checkpoints = Checkpoints(folder)
    left, written = (
        prepare(checkpoints, source, form=form).with_suffix(".4711.tmp") for form in "ab"
    )
    left.write_bytes(b"half")
    with checkpoints.prepared(source, form="b", write=lambda file: None):
        written.write_bytes(b"half")
        source.write_bytes(b"other weights")
        prepare(checkpoints, source)
        assert list(folder.glob("*.tmp")) == [written]


def test_the_file_used_longest_ago_makes_room(source: Path, folder: Path) -> None:
    checkpoints = Checkpoints(folder, limit_bytes=2500)
    old, used = (prepare(checkpoints, source, form=form) for form in "ab")
    os.utime(old, (time.time() - 10, time.time()))
    os.utime(used, (time.time() - 20, time.time()))
    prepare(checkpoints, source, form="b")  # counts as used now
    new = prepare(checkpoints, source, form="c")
    assert (old.exists(), used.exists(), new.exists()) == (False, True, True)


def test_a_file_that_another_process_removes_meanwhile_is_left_out(
    source: Path, folder: Path
) -> None:
    checkpoints = Checkpoints(folder, limit_bytes=1500)
    old = prepare(checkpoints, source, form="a")
    (folder / "gone.safetensors").symlink_to(folder / "no such file")  # is listed, as it was
    assert prepare(checkpoints, source, form="b").exists()
    assert not old.exists()


def test_a_file_about_to_be_mapped_is_not_removed(source: Path, folder: Path) -> None:
    checkpoints = Checkpoints(folder, limit_bytes=1500)
    with checkpoints.prepared(source, form="a", write=lambda file: _fill(file, 1000)) as held:
        prepare(checkpoints, source, form="b")
        assert held.exists()


def test_what_was_remembered_is_worked_out_again_for_a_changed_file(
    source: Path, folder: Path
) -> None:
    checkpoints = Checkpoints(folder)
    answers = iter(["first", "second"])
    for expected in ("first", "first"):
        assert checkpoints.remember(source, "name", lambda: next(answers)) == expected
    source.write_bytes(b"other weights")
    assert checkpoints.remember(source, "name", lambda: next(answers)) == "second"


def test_a_spoilt_note_is_worked_out_again(source: Path, folder: Path) -> None:
    checkpoints = Checkpoints(folder)
    checkpoints.remember(source, "name", lambda: "right")
    for note in folder.glob("*.json"):
        note.write_text("{")
    assert checkpoints.remember(source, "name", lambda: "right") == "right"


def test_the_sha256_is_that_of_the_bytes(source: Path, folder: Path) -> None:
    assert Checkpoints(folder).sha256(source) == hashlib.sha256(b"weights").hexdigest()


def test_a_spoilt_prepared_file_is_made_anew(source: Path, folder: Path) -> None:
    checkpoints = Checkpoints(folder)
    file = prepare(checkpoints, source)
    whole = file.read_bytes()
    file.write_bytes(whole[:500])
    assert prepare(checkpoints, source).read_bytes() == whole


def test_one_that_is_made_anew_is_known_by_what_is_in_it_now(source: Path, folder: Path) -> None:
    checkpoints = Checkpoints(folder)
    answers = iter(["first", "second"])
    for expected in ("first", "second"):
        file = prepare(checkpoints, source)
        assert checkpoints.remember(file, "name", lambda: next(answers)) == expected
        file.unlink()  # as a cache over its limit does


def test_of_two_processes_one_prepares_and_both_get_the_file(source: Path, folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(2), context.SimpleQueue()
    child = context.Process(target=_prepare_and_say, args=(start, source, folder, answers))
    child.start()
    _prepare_and_say(start, source, folder, answers)
    child.join()
    assert child.exitcode == 0
    told = [answers.get() for _ in range(2)]
    assert sorted(made for made, _ in told) == [False, True]
    assert len({file for _, file in told}) == 1


def _prepare_and_say(start: Barrier, source: Path, folder: Path, answers: SimpleQueue[Any]) -> None:
    made = False

    def write(file: Path) -> None:
        nonlocal made
        made = True
        _fill(file, 10_000_000)

    start.wait(60)
    with Checkpoints(folder).prepared(source, form="a", write=write) as file:
        assert file.stat().st_size > 10_000_000
        answers.put((made, file))
