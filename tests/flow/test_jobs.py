"""Whole jobs over real processes: what they leave, whatever dies meanwhile."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import dataset
from typer.testing import CliRunner

from api_client import AsyncClient, Client, Settings, cli
from api_client.quickstart import shapes
from api_client.stack.up import Stack
from api_client.wire.errors import BadRequest, UnknownJob
from api_client.wire.jobs import JobState
from tests.flow.processes import ROOT, Valkey, until

CATALOGUE = """
["fake/slow"]
backend = "fake"
options = { dimension = 16, run_s = 0.05 }
"""
PICTURES = 2000


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two thousand small pictures in folders of a hundred; one is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    for n in range(PICTURES):
        file = folder / f"{n // 100:02}" / f"{n:04}.png"
        file.parent.mkdir(exist_ok=True)
        pixels = np.full((8, 8, 3), (n % 256, n // 256, 77), np.uint8)
        Image.fromarray(pixels).save(file)
    (folder / "07" / "0777.png").write_bytes(b"broken")
    return folder


class Fleet:
    """A Valkey, workers and a beat, each of which may be killed."""

    def __init__(self, folder: Path, pictures: Path) -> None:
        self._folder = folder
        self.valkey = Valkey(folder)
        (folder / "catalogue.toml").write_text(CATALOGUE)
        self._env = {
            **os.environ,
            "CLIPYARD_REDIS_URL": self.valkey.url,
            "CLIPYARD_CATALOGUE": str(folder / "catalogue.toml"),
            "CLIPYARD_IMAGE_ROOTS": json.dumps([str(pictures)]),
            "CLIPYARD_SINK_ROOTS": json.dumps([str(folder)]),
            "CLIPYARD_JOBS_DIR": str(folder / "jobs"),
            "CLIPYARD_JOB_LEASE_S": "3",
            "CLIPYARD_TEND_INTERVAL_S": "0.5",
            "CLIPYARD_SWEEPS_ENABLED": "false",
            "CLIPYARD_DEFAULT_MODEL": "fake/slow",
            "CLIPYARD_BATCH_SIZE": "32",
            "CLIPYARD_DECODE_THREADS": "2",
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client = Client(Settings.read(redis_url=self.valkey.url))
        self.start("beat", "celery -A beat_schedule beat")

    def start(self, name: str, command: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command.split()],
                cwd=ROOT,
                env=self._env,
                stdout=log,
                stderr=log,
            )

    def worker(self, name: str) -> None:
        self.start(
            name, f"celery -A tests.light_app worker -n {name}@flow -l info --without-gossip"
        )

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait(30)

    def end(self) -> None:
        self.client.close()
        for name in list(self._processes):
            self.kill(name)
        self.valkey.kill()


@pytest.fixture
def killable(tmp_path: Path, pictures: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, pictures)
    for name in ("a", "b"):
        fleet.worker(name)
    yield fleet
    fleet.end()


def contents(sink: Path) -> dict[str, str]:
    """Each shard's digest."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(sink.glob("part-*.parquet"))
    }


@pytest.mark.timeout(300)
def test_a_job_survives_whatever_dies_and_leaves_what_an_undisturbed_one_leaves(
    killable: Fleet, pictures: Path, tmp_path: Path
) -> None:
    submit = {"model": "fake/slow", "id": "same", "chunk_size": 32, "window": 8}
    disturbed = killable.client.reembed(pictures, sink=tmp_path / "disturbed", **submit)

    def finished(chunks: int) -> Callable[[], Any]:
        return lambda: disturbed.status().chunks_done >= chunks

    until(finished(8), within_s=100)
    killable.kill("a")
    killable.worker("a")
    until(finished(20), within_s=100)
    killable.valkey.kill()
    killable.valkey.start()
    until(finished(30), within_s=100)
    assert disturbed.pause().state is JobState.PAUSED
    killable.kill("b")
    killable.worker("b")
    disturbed.resume()
    until(finished(45), within_s=100)
    killable.kill("a")
    status = disturbed.wait(timeout=100)

    assert status.state is JobState.COMPLETE
    assert (status.done, status.failed) == (PICTURES - 1, 1)
    table = dataset.dataset(tmp_path / "disturbed", format="parquet").to_table()
    ids = table["id"].to_pylist()
    assert len(ids) == len(set(ids)) == PICTURES
    [lost] = [row for row in table.to_pylist() if row["error"]]
    assert (lost["id"], lost["error"], lost["vector"]) == ("07/0777.png", "image_unreadable", None)

    undisturbed = undisturbed_run(killable, pictures, tmp_path / "undisturbed", submit)
    assert contents(tmp_path / "disturbed") == contents(undisturbed)
    report = json.loads((tmp_path / "disturbed" / "_job-same" / "report.json").read_text())
    assert (report["state"], report["vectors"], report["missing"]) == ("complete", 1999, 0)


def undisturbed_run(fleet: Fleet, pictures: Path, sink: Path, submit: dict[str, Any]) -> Path:
    """The same job, as if it had never been."""
    with fleet.valkey.client() as store:
        store.delete(*store.keys("clipyard:job*"))
    status = fleet.client.reembed(pictures, sink=sink, **submit).wait(timeout=100)
    assert status.state is JobState.COMPLETE
    return sink


@pytest.fixture
def shapes_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shapes"
    folder.mkdir()
    for n, (caption, picture) in enumerate(shapes.collection(96, seed=5)):
        picture.save(folder / f"{n:03}-{caption.replace(' ', '-')}.png")
    return folder


@pytest.fixture
def clipyard(running: Stack, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a command line; gives the exit code and what it printed."""
    monkeypatch.setenv("CLIPYARD_REDIS_URL", running.url)

    def run(*argv: object) -> tuple[int, str]:
        said = CliRunner().invoke(cli.app, ["reembed", *map(str, argv)])
        if said.exception and not isinstance(said.exception, SystemExit):
            raise said.exception
        return said.exit_code, said.output

    return run


@pytest.mark.timeout(300)
def test_the_shapes_collection_moves_to_another_model_and_back_under_the_name_it_is_used_by(
    client: Client, shapes_folder: Path, clipyard: Callable[..., Any], tmp_path: Path
) -> None:
    import lancedb  # takes seconds

    store, size = tmp_path / "lance", {"chunk_size": 32}
    first = client.reembed(
        shapes_folder, sink=f"lancedb:{store}#seeded", model="shapes/seeded", **size
    )
    assert first.wait(timeout=100).state is JobState.COMPLETE

    code, said = clipyard(
        "migrate", "shapes", "--old", f"lancedb:{store}#seeded", "--into-new",
        f"lancedb:{store}#demo", "--model", "shapes/demo", "--set", "chunk_size=32", "--json",
    )  # fmt: skip
    assert code == 0
    moved = client.job(json.loads(said)["id"])
    status = moved.wait(timeout=100)
    assert (status.state, status.done) == (JobState.COMPLETE, 96)
    report = json.loads((Path(status.papers) / "report.json").read_text())
    assert 0 <= report["moved"]["overlap_at_10"] < 0.9  # one of the two knows nothing
    with Image.open(Path(status.papers) / "moved.png") as sheet:
        assert sheet.width > 500

    def best(text: str, model: str) -> str:
        """The best picture, searched by the name that people use."""
        [wanted] = client.embed_texts([text], model=model)
        table = lancedb.connect(store).open_table("shapes")
        return str(table.search(wanted).distance_type("cosine").limit(1).to_list()[0]["id"])

    def fingerprints() -> set[str]:
        table = lancedb.connect(store).open_table("shapes").to_arrow()
        return set(table["fingerprint"].to_pylist())

    assert clipyard("switch-back", moved.id)[0] == 0
    assert fingerprints() == {first.status().fingerprint}
    code, said = clipyard("switch", moved.id)
    assert (code, said.strip()) == (0, f"shapes leads to {store} demo now, before to seeded")
    assert fingerprints() == {status.fingerprint}
    assert "red-heart" in best("a red heart", "shapes/demo")
    assert clipyard("switch-back", moved.id)[0] == 0
    assert fingerprints() == {first.status().fingerprint}


def test_a_job_is_led_from_the_command_line(
    clipyard: Callable[..., Any], shapes_folder: Path, tmp_path: Path
) -> None:
    (shapes_folder / "999.png").write_bytes(b"no picture")
    sink = tmp_path / "vectors"
    code, said = clipyard(
        "submit", shapes_folder, "--sink", sink, "-m", "fake/vision", "--set", "id=led",
        "--set", "on_failure=pause", "--watch",
    )  # fmt: skip
    assert (code, "led" in said) == (1, True)  # it has paused
    assert json.loads(clipyard("show", "led", "--json")[1])["state"] == "paused"
    assert clipyard("resume", "led")[0] == 0
    assert clipyard("watch", "led")[0] == 1  # an item failed
    shown = json.loads(clipyard("show", "led", "--json")[1])
    assert (shown["state"], shown["done"], shown["failed"]) == ("complete", 96, 1)
    assert "led" in clipyard("list")[1]
    with pytest.raises(BadRequest, match="only a job that is at work can be paused"):
        clipyard("pause", "led")
    with pytest.raises(BadRequest, match="it is over already"):
        clipyard("cancel", "led")
    with pytest.raises(UnknownJob, match="there is no job 'another'"):
        clipyard("show", "another")
    with pytest.raises(BadRequest, match="there is a job 'led' already"):
        clipyard("submit", shapes_folder, "--sink", sink, "--set", "id=led")

    shapes.collection(1, seed=1)[0][1].save(shapes_folder / "999.png")
    assert clipyard("retry-failed", "led")[0] == 0
    assert clipyard("watch", "led")[0] == 0
    code, said = clipyard("verify", "led", "--json")
    assert (code, json.loads(said)["failed"]) == (0, 0)


async def test_jobs_can_be_awaited(running: Stack, shapes_folder: Path, tmp_path: Path) -> None:
    async with AsyncClient(Settings.read(redis_url=running.url)) as client:
        job = await client.reembed(shapes_folder, sink=tmp_path / "vectors", model="fake/vision")
        status = await job.wait(timeout=100)
        assert (status.state, status.done) == (JobState.COMPLETE, 96)
        assert job.id in {status.id for status in await client.jobs()}
