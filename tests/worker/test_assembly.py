"""A worker's parts, put together for real, with plug-ins that behave and plug-ins that do not."""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from threading import Event
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image

from api_client.status import read_fleet
from api_client.wire import metrics
from api_client.wire.errors import BackendFailed
from api_client.wire.messages import Kind, PathRef, Priority
from api_client.wire.version import VERSION
from worker import assembly, runtime
from worker.backends.fake import FakeModel
from worker.catalogue import BUILT_IN, Catalogue
from worker.residency.memory import Bytes, Pressure
from worker.residency.reservation import Reservations
from worker.residency.slots import Limits
from worker.settings import WorkerSettings
from worker.state import State

PLUG_IN = """
import threading
import numpy as np
from worker.backends.base import About, Footprint
from worker.backends.simple import SimpleModel
from worker.catalogue import Entry

gate = threading.Event()

class Lengths(SimpleModel):
    dimension = 2
    def embed_texts(self, texts):
        return np.array([(1, len(text)) for text in texts], np.float32)

class Late(Lengths):
    about = About(auto_start=True, priority=2)
    models = (Entry("late/one"),)

class Early(Lengths):
    about = About(auto_start=True, priority=1)
    models = (Entry("early/one"),)

class Stuck(Lengths):
    about = About(patience_s=2.0)
    models = (Entry("stuck/one"),)
    def embed_texts(self, texts):
        gate.wait()
        return super().embed_texts(texts)

class Confused(Lengths):
    about = About(auto_start=True, priority=0)
    models = (Entry("confused/one"),)
    @classmethod
    def describe(cls, model_id):
        raise KeyError(model_id)
    def check(self):
        raise ZeroDivisionError

class Loose(Lengths):
    models = (Entry("loose/one"),)
    @classmethod
    def describe(cls, model_id):
        return model_id
    def check(self):
        return 0.5
    def footprint(self):
        return Footprint(host_bytes=0.5)

def broken(placement):
    raise ValueError("on strike")
"""
PLUG_INS = (
    "late:Late",
    "early:Early",
    "stuck:Stuck",
    "confused:Confused",
    "loose:Loose",
    "broken:broken",
)
ODD = {
    "slots": 5,
    "device_memory_gb": 1.5,
    "host_memory_gb": 2.5,
    "slot_wait_s": 7.0,
    "min_residency_s": 11.0,
    "headroom": 0.3,
    "content_cache_mb": 1,
}


@contextmanager
def built(url, prefix, folder, **given):
    """A worker whose plug-ins are in a module of their own, with a gate that one hangs at."""
    module = f"plug_ins_of_{folder.name}"
    (folder / f"{module}.py").write_text(PLUG_IN)
    (folder / "catalogue.toml").write_text('["fake/vision"]\nbackend = "fake"\n')
    settings = WorkerSettings.read(
        redis_url=url,
        key_prefix=prefix,
        device="cpu",
        offline=True,
        cache_dir=folder,
        catalogue=folder / "catalogue.toml",
        image_roots=[folder],
        foresight=False,
        default_model="ViT-H-14/laion2b",
        pinned=["bge-m3", "nobody/knows", "confused/two"],
        backends=[one.replace(":", f"={module}:") for one in PLUG_INS],
        **given,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        with closing(assembly.build(settings, node="gpu0@here")) as here:
            here.warm_up()
            try:
                yield here
            finally:
                sys.modules.pop(module).gate.set()


@pytest.fixture(scope="module")
def here(valkey_url, tmp_path_factory):
    """One for all that leave it as it is, of odd settings."""
    folder = tmp_path_factory.mktemp("runtime")
    with built(valkey_url, "runtime", folder, **ODD) as here:
        yield here


@pytest.fixture
def fresh(valkey_url, prefix, tmp_path):
    before = psutil.Process().net_connections()
    with built(valkey_url, prefix, tmp_path) as fresh:
        yield fresh
    left = psutil.Process().net_connections()
    assert not {one.laddr for one in left} - {one.laddr for one in before}


def embed(here, model_id):
    with here.slots.lease(here.catalogue[model_id]) as model:
        (outcome,) = here.batcher.embed(
            model,
            Kind.TEXT,
            ["four"],
            model.prepare_text,
            model_id=model_id,
            priority=Priority.INTERACTIVE,
        ).vectors
    return outcome


def test_plug_ins_start_in_their_order_and_a_bad_one_costs_nobody_else(fresh):
    loaded = sorted(fresh.slots.view(), key=lambda slot: slot.loaded_at)
    assert [slot.model_id for slot in loaded] == ["early/one", "late/one"]
    stuck = embed(fresh, "stuck/one")
    assert isinstance(stuck, BackendFailed)
    assert "the model family stuck hangs" in str(stuck)
    with pytest.raises(BackendFailed, match=r"broken cannot be made.*on strike"):
        fresh.families["broken"]
    np.testing.assert_allclose(embed(fresh, "late/one"), np.array([1, 4]) / np.sqrt(17), rtol=1e-6)

    found = fresh.health.look()
    assert (found.state, "stuck/one failed" in found.trouble) == ("ready", True)
    assert "broken cannot be made" in found.trouble
    fresh.tracker.beat()
    (worker,) = read_fleet(fresh.redis, fresh.keys).workers
    assert (worker.state, worker.trouble) == (found.state, found.trouble)


def test_a_model_that_says_its_bytes_in_fractions_is_shown_and_so_is_its_worker(here):
    embed(here, "loose/one")
    here.tracker.beat()
    (worker,) = read_fleet(here.redis, here.keys).workers
    assert "loose/one" in worker.models


def test_what_a_family_describes_as_no_entry_is_refused(here):
    with pytest.raises(BackendFailed, match="family loose: describe answered 'loose/two'; make it"):
        here.catalogue["loose/two"]


def test_that_its_last_pass_failed_is_no_trouble_once_a_model_has_left(fresh):
    embed(fresh, "stuck/one")
    assert "stuck/one failed" in fresh.health.look().trouble
    assert fresh.slots.unload("stuck/one", reason="a test", wait_s=1.0)
    assert "stuck/one failed" not in fresh.health.look().trouble


def test_each_part_is_told_what_the_settings_say_of_it(here):
    assert here.slots.limits == Limits(
        slots=5,
        device_bytes=1_500_000_000,
        host_bytes=2_500_000_000,
        wait_s=7.0,
        residency_s=11.0,
        pinned=frozenset({"ollama/bge-m3", "nobody/knows", "confused/two"}),
    )
    assert here.ledger._headroom == 0.3
    with here.ledger.reserve(100):
        assert here.redis.hlen(here.keys.reserved("here/cpu")) == 1


def test_what_a_pass_takes_beside_the_weights_is_noted(here, monkeypatch):
    monkeypatch.setattr(here.memory, "peak", lambda: nullcontext(lambda: 123))
    embed(here, "late/one")
    assert here.ledger["late/one"].peak_batch_bytes == 123


def test_the_content_cache_is_there_where_a_setting_gives_it_room_and_the_meter_counts(here):
    [folder] = here.settings.image_roots
    Image.new("L", (8, 8)).save(folder / "a.png")
    with here.slots.lease(here.catalogue["fake/vision"]) as model:
        for _ in range(2):
            pictures = here.pictures(model, "fake/vision")
            pictures.prepare(0, PathRef(path=str(folder / "a.png")), {})
            pictures.keep([np.ones(model.traits.dimension, np.float32)])
    for found in ("hit", "miss"):
        labels = {"model": "fake/vision", "found": found}
        counted = here.meter.registry.get_sample_value("clipyard_cache_lookups_total", labels)
        assert counted == 1


def test_models_that_the_settings_name_by_alias_are_known_by_their_ids(here):
    assert here.slots.limits.pinned == {"ollama/bge-m3", "nobody/knows", "confused/two"}
    assert here.tracker.current() == "ViT-H-14/laion2b_s32b_b79k"


def test_a_pinned_model_that_nobody_knows_is_told(caplog, here):
    assert assembly._by_ids(here.settings, here.catalogue).pinned == here.settings.pinned
    assert "CLIPYARD_PINNED: no model 'nobody/knows'" in caplog.text


def test_where_sweeps_are_off_nobody_is_told_of_an_interval(here):
    off = here.settings.model_copy(update={"sweeps_enabled": False})
    scrapes = [State(worker).collect() for worker in (here, replace(here, settings=off))]
    told = [{one.name for one in scrape} for scrape in scrapes]
    assert told[0] - told[1] == {metrics.SWEEP_INTERVAL_S.name}


def test_a_scrape_tells_how_the_worker_is_now(here, monkeypatch):
    monkeypatch.setattr(here.tracker, "_state", "ready")
    monkeypatch.setattr(here.tracker, "pressure", lambda: Pressure.HIGH)
    monkeypatch.setattr(here.tracker, "device_memory", lambda: Bytes(total=9, free=4))
    monkeypatch.setattr(here.memory, "host", lambda: Bytes(total=7, free=2))
    with here.slots.lease(here.catalogue["early/one"]):
        scrape = [sample for one in State(here).collect() for sample in one.samples]
    told = {(sample.name, *sample.labels.values()): sample.value for sample in scrape}
    for metric, *labels, value in (
        (metrics.READY, 1),
        (metrics.PRESSURE, 2),
        (metrics.LAST_SWEEP, here.tracker.swept_at),
        (metrics.SWEEP_INTERVAL_S, here.settings.sweep_interval_s),
        (metrics.MEMORY_TOTAL, "device", 9),
        (metrics.MEMORY_TOTAL, "host", 7),
        (metrics.MEMORY_FREE, "device", 4),
        (metrics.MEMORY_FREE, "host", 2),
        (metrics.LEASES, "early/one", 1),
        (metrics.WAITING_ITEMS, 0),
        (metrics.FORWARD_AGE_S, 0),
    ):
        assert told[(metric.name, *labels)] == value, metric.name
    [build] = (sample.labels for sample in scrape if sample.name == metrics.BUILD_INFO.name)
    assert (build["version"], build["device"]) == (VERSION, "cpu")


def test_a_pinned_model_that_is_idle_hides_no_thrash_of_the_others(fresh):
    fresh.slots.limits = replace(fresh.slots.limits, pinned=frozenset({"early/one"}))
    fresh.slots._slots.get("early/one").used_at -= 3600
    (age,) = (one for one in State(fresh).collect() if one.name == metrics.LRU_AGE_S.name)
    assert 0 < age.samples[0].value < 3600


def test_a_worker_that_loses_its_device_as_it_starts_ends_and_is_never_ready(fresh, monkeypatch):
    def lost(model):
        raise RuntimeError("CUDA error: device-side assert triggered")

    ends = []
    monkeypatch.setattr(FakeModel, "lift", lost)
    settings = fresh.settings.model_copy(update={"preload": ("fake/vision",)})
    replace(fresh, settings=settings, watchdog=SimpleNamespace(end=ends.append)).warm_up()
    assert ends == ["fake has lost its device: CUDA error: device-side assert triggered"]


def test_a_worker_whose_device_is_lost_is_scraped_until_it_ends(here, monkeypatch):
    def lost():
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(here.memory, "device", lost)
    assert metrics.READY.name in {one.name for one in State(here).collect()}


def test_a_file_system_that_hangs_holds_up_one_look_around_and_not_those_that_follow(
    here, monkeypatch
):
    looks, mended = [Event(), Event()], Event()
    left = iter(looks)

    def hang(*_, **__):
        next(left).set()
        mended.wait(20)
        return ()

    monkeypatch.setattr(runtime, "complaints", hang)
    with ThreadPoolExecutor() as threads:
        threads.submit(here.look_around)
        assert looks[0].wait(20)
        here.look_around()
        assert not looks[1].is_set()
        mended.set()


def test_a_redis_that_is_silent_holds_no_load_up(valkey_of_my_own, keys, monkeypatch):
    monkeypatch.setattr(assembly, "HASTE_S", 0.1)
    settings = WorkerSettings.read(redis_url=valkey_of_my_own.url)
    with assembly._hasty_client(settings) as store, ThreadPoolExecutor() as threads:
        reservations = Reservations(store, keys, device="GPU-1")

        def load():
            with reservations.reserve(100):
                pass

        with valkey_of_my_own.silent():
            threads.submit(load).result(8)


def test_a_default_model_may_have_the_name_of_hugging_face(here):
    named = here.settings.model_copy(update={"default_model": "openai/clip-vit-base-patch32"})
    assert assembly._by_ids(named, Catalogue.read(BUILT_IN)).default_model == "ViT-B-32/openai"


def test_a_default_model_of_a_family_that_cannot_be_made_keeps_nobody_from_the_others(here, caplog):
    named = here.settings.model_copy(update={"default_model": "broken/one"})
    assert assembly._by_ids(named, here.catalogue).default_model == "broken/one"
    assert "CLIPYARD_DEFAULT_MODEL: the model family broken cannot be made" in caplog.text
