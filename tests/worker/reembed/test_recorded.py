"""A job that a worker of 2026-11-28 finished, as it lies on the disk; it is never edited."""

import shutil
from pathlib import Path

from api_client.wire.jobs import Place
from worker.reembed import manifest
from worker.reembed.check import compare
from worker.reembed.doors import Doors
from worker.reembed.items import Item
from worker.reembed.papers import Papers
from worker.reembed.sinks import open_sink
from worker.settings import WorkerSettings

RECORDED = Path(__file__).with_name("recorded")


def test_the_proof_of_a_recorded_job_finds_what_it_found_then(tmp_path):
    sink = shutil.copytree(RECORDED, tmp_path / "vectors")
    papers = Papers(sink / "_job-recorded")
    doors = Doors(WorkerSettings.read(sink_roots=[tmp_path]))
    plan = manifest.read(papers.manifest)
    held = open_sink(Place(kind="parquet", where=str(sink)), None, doors)
    found = compare(papers, plan, held, go_on=lambda: None)
    assert (found.done, found.failed, found.unfinished) == (2, 1, [])
    assert found.codes == {"image_missing": 1}
    [planned] = manifest.chunk(papers.manifest, 0, index=plan.index).items[:1]
    assert planned == Item(id="a.png", ref="/srv/pictures/a.png", meta={"tag": "1"})


def test_a_recorded_job_can_be_submitted_again_and_goes_on_with_its_papers(tmp_path):
    papers = Papers(shutil.copytree(RECORDED / "_job-recorded", tmp_path / "papers"))
    again = papers.spec().model_copy(update={"submitted_at": 0.0})
    papers.begin(again)
    assert papers.spec() == again
