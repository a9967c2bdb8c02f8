import os

import pytest

from api_client.wire.messages import ComplaintAbout
from worker.complaints import complaints
from worker.settings import WorkerSettings


@pytest.fixture
def about(tmp_path):
    """What a worker complains of, with these settings."""

    def about(*, on="cpu", least_free_bytes=0, **given):
        settings = WorkerSettings.read(**({"cache_dir": tmp_path / "cache"} | given))
        return complaints(
            settings, device=on, least_free_bytes=least_free_bytes, root=tmp_path / "root"
        )

    return about


def test_a_worker_whose_surroundings_are_well_complains_of_nothing(about, tmp_path):
    assert about(image_roots=(tmp_path,)) == ()


def test_an_image_root_that_is_not_there_is_told(about, tmp_path):
    [root] = about(image_roots=(tmp_path, tmp_path / "unmounted"))
    assert root.about == ComplaintAbout.IMAGE_ROOT
    assert "unmounted" in root.found


def test_an_image_root_that_is_no_folder_is_told(about, tmp_path):
    file = tmp_path / "file"
    file.touch(mode=0o755)
    assert [one.about for one in about(image_roots=(file,))] == [ComplaintAbout.IMAGE_ROOT]


@pytest.mark.parametrize("missing", [os.R_OK, os.X_OK])
def test_an_image_root_that_cannot_be_read_is_told(about, tmp_path, monkeypatch, missing):
    monkeypatch.setattr("os.access", lambda path, mode: not mode & missing)  # root may always
    assert about(image_roots=(tmp_path,))[0].about == ComplaintAbout.IMAGE_ROOT


@pytest.mark.parametrize("name", ["a" * 300, "file/below"])
def test_a_folder_that_cannot_even_be_looked_at_is_told(about, tmp_path, name):
    (tmp_path / "file").touch()
    folder = tmp_path / name  # stands for one that is stale, broken, or below another's home
    root, disk = about(image_roots=(folder,), cache_dir=folder)
    assert (root.about, disk.about) == (ComplaintAbout.IMAGE_ROOT, ComplaintAbout.DISK)
    assert "cannot be looked at" in disk.found


@pytest.mark.parametrize("missing", [os.W_OK, os.X_OK])
def test_a_folder_for_checkpoints_that_is_read_only_is_told(about, monkeypatch, missing):
    monkeypatch.setattr("os.access", lambda path, mode: not mode & missing)  # root may always
    [disk] = about()
    assert disk.about == ComplaintAbout.DISK
    assert "cannot be written to" in disk.found


def test_a_full_disk_is_told_with_what_is_left(about, tmp_path, monkeypatch):
    monkeypatch.setattr("worker.complaints.free_bytes", lambda _: 1_260_000_000)
    assert about(least_free_bytes=1_260_000_000) == ()
    [disk] = about(least_free_bytes=2_000_000_000)
    assert (disk.about, disk.found) == (
        ComplaintAbout.DISK,
        f"1.3 GB free below {tmp_path / 'cache'}",
    )


@pytest.mark.parametrize(
    ("device", "asked", "told"), [("cpu", "auto", 1), ("cpu", "cpu", 0), ("cuda:0", "auto", 0)]
)
def test_a_gpu_that_torch_does_not_see_is_told_unless_the_cpu_is_meant(
    about, tmp_path, device, asked, told
):
    (tmp_path / "root" / "dev").mkdir(parents=True)
    (tmp_path / "root" / "dev" / "nvidia0").touch()
    seen = [one.about for one in about(on=device, device=asked)]
    assert seen == [ComplaintAbout.GPU] * told


def test_a_gpu_that_was_asked_for_and_is_not_there_is_told(about):
    [told] = about(on="cpu", device="cuda:0")
    assert told.about == ComplaintAbout.GPU
    assert told.found == "cuda:0 was asked for, and this worker runs on the CPU"
