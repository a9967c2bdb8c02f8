"""What the quick start does to the folder it is given; the whole of it runs in tests/docs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image, ImageChops

from api_client import cli
from api_client.quickstart import run, sheet
from api_client.testing import FakeClient
from api_client.wire.errors import BadRequest, ImageUnreadable, NoAnswer
from api_client.wire.messages import Managed


def test_pictures_that_were_there_are_kept_and_not_searched(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "PICTURES", 3)
    own = tmp_path / "holiday.png"
    own.write_bytes(b"mine")
    first, again = run._drawn(tmp_path), run._drawn(tmp_path)
    assert own.read_bytes() == b"mine"
    assert own not in first.files
    assert first == again


def test_a_worker_is_told_of_the_folder_and_of_where_its_links_lead(tmp_path: Path) -> None:
    library, elsewhere = tmp_path / "library", tmp_path / "elsewhere"
    for number in range(3):
        (library / str(number)).mkdir(parents=True)
        (library / str(number) / "a.png").touch()
    elsewhere.mkdir()
    (elsewhere / "b.png").touch()
    (library / "link.png").symlink_to(elsewhere / "b.png")
    (library / "loop.png").symlink_to("loop.png")
    assert run._roots(library, run._own(library)) == (library.resolve(), elsewhere.resolve())


def test_pictures_are_those_that_the_commands_take(tmp_path: Path) -> None:
    for name in ("a.jfif", "b.HEIC", "notes.txt", "._a.jfif", ".trash/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert run._own(tmp_path).files == (tmp_path / "a.jfif", tmp_path / "b.HEIC")


def test_a_picture_that_a_worker_took_is_drawn_however_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (30, 30), "red").save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # twice that is an error of Pillow's
    drawn = sheet.draw(["a red square"], [[(tmp_path / "a.png", 0.5)]])
    assert drawn.getpixel((sheet.TILE_PX // 2, sheet.TILE_PX // 2)) == (255, 0, 0)


def test_a_query_is_shown_to_its_end_above_few_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (30, 30), "red").save(tmp_path / "a.png")
    drawn = sheet.draw(["a dog that runs\nalong a beach"], [[(tmp_path / "a.png", 0.5)]])
    margin = drawn.crop((drawn.width - sheet.GAP_PX, 0, *drawn.size))
    assert margin.getcolors() == [(sheet.GAP_PX * drawn.height, sheet.PAPER)]


def test_a_query_in_letters_that_the_font_lacks_is_shown_by_its_number(tmp_path: Path) -> None:
    Image.new("RGB", (30, 30), "red").save(tmp_path / "a.png")
    row = [(tmp_path / "a.png", 0.5)]
    drawn = [sheet.draw(["a red square", query], [row, row]) for query in ("红色方块", "ein Fuß")]
    assert ImageChops.difference(*drawn).getbbox() is None
    assert sheet.draw(["a red square", "a foot"], [row, row]) != drawn[0]


def test_a_folder_of_a_user_who_is_not_here_is_none(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="~nobody-here/x is no folder"):
        run.quickstart(
            images=Path("~nobody-here/x"), model="a/b", queries=(), out=tmp_path, as_json=False
        )


class Downloading(FakeClient):
    """Its worker fetches weights over a slow line first."""

    def load(self, model: str, *, timeout: float = 120.0, **options: Any) -> list[Managed]:
        if timeout < 1000:
            raise NoAnswer("still downloading")
        return super().load(model, timeout=timeout, **options)


def test_a_model_has_the_time_that_its_download_takes(tmp_path: Path) -> None:
    Image.new("RGB", (30, 30), "red").save(tmp_path / "a.png")
    collection = run.Collection((tmp_path / "a.png",))
    summary = run._job(
        Downloading(), collection, "fake/small", ("a red square",), tmp_path, as_json=False
    )
    assert summary["images"] == 1


def test_each_picture_that_was_found_has_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tuple(
        tmp_path / f"{letter}, taken on the first day of the trip.png" for letter in "abc"
    )
    for file in files:
        Image.new("RGB", (30, 30), "red").save(file)
    run._job(
        FakeClient(),
        run.Collection(files),
        "fake/small",
        ("a red square",),
        tmp_path,
        as_json=False,
    )
    shown = capsys.readouterr().out.splitlines()
    assert all(any(file.name in line for line in shown) for file in files)


def test_a_picture_that_failed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tmp_path / "a.png", tmp_path / "b.png"
    for file in files:
        Image.new("RGB", (30, 30), "red").save(file)
    client = FakeClient(failing={str(files[0]): ImageUnreadable("cut short")})
    run._job(
        client, run.Collection(files), "fake/small", ("a red square",), tmp_path, as_json=False
    )
    said = capsys.readouterr().err.splitlines()
    assert f"{files[0]}: image_unreadable: cut short" in said
    assert f"see {tmp_path}/contact-sheet.png" in said[-1]


def test_what_a_script_reads_is_json_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def no_stack(*_: object, **__: object) -> Iterator[Any]:
        yield SimpleNamespace(url="redis://fake", supervisor=Mock())

    Image.new("RGB", (30, 30), "red").save(tmp_path / "a.png")
    monkeypatch.setattr(run, "temporary_stack", no_stack)
    monkeypatch.setattr(run, "Client", lambda *_, **__: FakeClient())
    words = f"quickstart --images {tmp_path} --out {tmp_path / 'out'} --model fake/small --json"
    monkeypatch.setattr("sys.argv", ["clipyard", *words.split()])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert json.loads(capsys.readouterr().out)["images"] == 1


def test_that_no_picture_is_nearest_its_caption_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (30, 30), "red").save(tmp_path / "a.png")
    collection = run.Collection((tmp_path / "a.png",), ("what none of ours says",))
    run._job(FakeClient(), collection, "fake/small", ("a red square",), tmp_path, as_json=False)
    assert "0.0% nearest their own caption" in capsys.readouterr().err
