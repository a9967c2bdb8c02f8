from hashlib import sha256

from worker.backends.content import lines


def test_a_line_is_a_files_place_and_content_for_fingerprints_of_long_ago(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/c", "a"):
        (tmp_path / name).write_text(name)
    a, c = (sha256(name).hexdigest() for name in (b"a", b"b/c"))
    assert lines(tmp_path, tmp_path.rglob("*")) == [f"a {a}", f"b/c {c}"]
