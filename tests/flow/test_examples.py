"""Every example finds the right picture, by the model that comes with the project."""

import re
import runpy
from pathlib import Path

import pytest

from api_client.quickstart import shapes

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*_search.py"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of coloured shapes, named by what they show."""
    folder = tmp_path_factory.mktemp("pictures")
    for caption, picture in shapes.collection(24, seed=5):
        picture.save(folder / f"caf\udce9 {caption}.png")  # a name that is not UTF-8
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.mark.filterwarnings("ignore")  # of libraries that the examples are about
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_finds_the_right_picture(running, pictures, example, monkeypatch, capsys):
    wanted = shapes.collection(24, seed=5)[0][0]
    monkeypatch.setenv("CLIPYARD_REDIS_URL", running.url)
    monkeypatch.setattr("sys.argv", [str(example), str(pictures), wanted])
    runpy.run_path(str(example), run_name="__main__")
    best = capsys.readouterr().out.splitlines()[0]
    assert best.endswith(f"{wanted}.png")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["."], "PICTURES"),
        (["pictures", " "], "texts[0] is empty or blank"),
        (["broken", "a query"], "no picture in broken can be read"),
    ],
)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_what_an_example_cannot_use_is_one_sentence(
    running, pictures, example, arguments, told, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("pictures").symlink_to(pictures)
    Path("broken").mkdir()
    Path("broken/broken.png").write_bytes(b"no picture")
    monkeypatch.setenv("CLIPYARD_REDIS_URL", running.url)
    monkeypatch.setattr("sys.argv", [str(example), *arguments])
    with pytest.raises(SystemExit, match=re.escape(told)):
        runpy.run_path(str(example), run_name="__main__")
