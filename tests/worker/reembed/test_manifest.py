import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_client.wire.errors import JobRefused, StoreDown
from worker.reembed import manifest
from worker.reembed.items import Item


def items(count):
    return [Item(id=f"p/{n}.jpg", ref=f"/photos/p/{n}.jpg") for n in range(count)]


def written(folder, found, chunk_size=4):
    totals = list(manifest.write(folder, found, chunk_size=chunk_size))
    return manifest.read(folder), totals


def chunks(folder, plan):
    return [manifest.chunk(folder, n, index=plan.index) for n in range(plan.chunks)]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.builds(
            Item,
            id=st.text(st.characters(exclude_categories=[]), max_size=20),
            ref=st.text(max_size=20),
            text=st.none() | st.text(max_size=20),
            meta=st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.none()),
        ),
        min_size=1,
        unique_by=lambda item: item.id,
    ),
    st.integers(1, 5),
)
def test_what_is_planned_is_read_again_chunk_by_chunk(tmp_path_factory, found, size):
    folder = tmp_path_factory.mktemp("manifest")
    plan, _ = written(folder, found, size)
    read = [item for chunk in chunks(folder, plan) for item in chunk.items]
    assert read == found
    assert plan.items == len(found)


def test_a_line_of_the_manifest_is_an_item_and_its_parts_hold_64_chunks(tmp_path):
    plan, totals = written(tmp_path, items(300))
    parts = sorted(tmp_path.glob("part-*.jsonl"))
    assert [len(part.read_text().splitlines()) for part in parts] == [256, 44]
    assert totals == [256, 300]
    assert plan.chunks == 75


def test_a_second_walk_writes_the_same_bytes(tmp_path):
    written(tmp_path / "a", items(300))
    started = manifest.write(tmp_path / "b", items(300), chunk_size=4)
    next(started)
    started.close()  # this planner was killed
    assert not (tmp_path / "b" / "manifest.json").exists()
    written(tmp_path / "b", items(300))
    same = [{p.name: p.read_bytes() for p in (tmp_path / x).iterdir()} for x in "ab"]
    assert same[0] == same[1]


def test_a_planner_that_was_overtaken_takes_nothing_from_the_next_one(tmp_path):
    whole, _ = written(tmp_path / "whole", items(2000), chunk_size=10)
    overtaken = manifest.write(tmp_path, items(2000), chunk_size=10)
    following = manifest.write(tmp_path, items(2000), chunk_size=10)
    next(overtaken)
    next(following)
    overtaken.close()
    assert list(following)[-1] == 2000
    assert manifest.read(tmp_path) == whole
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_line_that_was_changed_after_the_start_is_noticed(tmp_path):
    plan, _ = written(tmp_path, items(10))
    part = tmp_path / "part-00000.jsonl"
    part.write_text(part.read_text().replace("p/5.jpg", "q/5.jpg"))
    manifest.chunk(tmp_path, 0, index=plan.index)
    with pytest.raises(JobRefused, match=r"part-00000\.jsonl was changed after the job started"):
        manifest.chunk(tmp_path, 1, index=plan.index)


def test_a_worker_that_does_not_share_the_papers_says_so(tmp_path):
    plan, _ = written(tmp_path / "theirs", items(10))
    with pytest.raises(StoreDown, match="must share the folder of its papers"):
        manifest.chunk(tmp_path / "ours", 0, index=plan.index)


def test_a_manifest_that_was_replaced_after_the_start_is_noticed(tmp_path):
    plan, _ = written(tmp_path, items(10))
    written(tmp_path, items(11))
    with pytest.raises(JobRefused, match=r"index\.bin was changed"):
        manifest.chunk(tmp_path, 0, index=plan.index)


@pytest.mark.parametrize("at_once", [2**20, 7])
def test_duplicate_ids_are_refused_by_name(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(manifest, "IDS_AT_ONCE", at_once)
    with pytest.raises(JobRefused, match=r"2 items have an id .* 'p/3\.jpg', 'p/4\.jpg'"):
        written(tmp_path, items(100) + items(5)[3:])
    assert not (tmp_path / "manifest.json").exists()


def test_of_a_list_that_is_in_a_file_twice_little_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "SUSPECTS", 2)
    with pytest.raises(JobRefused, match=r"100 items have an id .* 'p/\d+\.jpg', 'p/\d+\.jpg';"):
        written(tmp_path, items(100) + items(100))


def test_an_empty_source_is_refused(tmp_path):
    with pytest.raises(JobRefused, match="holds no items"):
        written(tmp_path, [])


def test_a_folder_that_cannot_be_written_is_worth_another_try(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreDown):
        written(tmp_path / "file" / "below", items(3))


def test_a_power_cut_leaves_no_manifest_that_is_cut_short(tmp_path, monkeypatch):
    on_disk, named, fsync, replace = set(), set(), os.fsync, os.replace

    def kept(descriptor):
        fsync(descriptor)
        on_disk.add(os.fstat(descriptor).st_ino)

    def renamed(before, after):
        assert os.stat(before).st_ino in on_disk
        named.add(after.name)
        replace(before, after)

    monkeypatch.setattr(os, "fsync", kept)
    monkeypatch.setattr(os, "replace", renamed)
    written(tmp_path, items(3))
    assert named == {"part-00000.jsonl", "index.bin", "manifest.json"}
