"""The Models page in a real browser, over a real stack of two workers."""

import os
import socket
import ssl
import time
from pathlib import Path

import httpx
import psutil
import pytest
from flower.utils.broker import Broker

from api_client.client import Client
from api_client.dashboard.pages import ACTIONS
from api_client.dashboard.server import trust_as_the_url_says
from api_client.reembed.talks import submission
from api_client.testing import NODE, FakeClient
from api_client.wire.broker import celery_app
from api_client.wire.codec import pack_record
from api_client.wire.errors import NoAnswer
from api_client.wire.jobs import JobSpec, Place
from api_client.wire.messages import ModelStatus, WorkerStatus
from api_client.wire.settings import Settings
from tests.fleet import PASSWORD
from tests.flow.processes import until

IMAGES = Path(__file__).parents[3] / "docs" / "images"
DEVICE_ROW = (
    "document.querySelector("
    "`[data-worker='${arguments[0]}'] [data-model='fake/vision'][data-tier=device]`)"
)
DRAWN = (".models-slots .taken", ".models-memory .bg-secondary", "#jobs .progress-bar")
UNLOADED = "document.querySelector('#events tr[data-kind=unloaded]').innerText"


@pytest.fixture
def page(fleet, site, chromium):
    chromium.open(f"http://clipyard:{PASSWORD}@{site}/models")
    chromium.see("document.querySelectorAll('section[data-worker]').length === 2")
    return chromium


@pytest.fixture
def workers(caller):
    return caller.status().workers


def test_unload_is_pressed_and_the_slot_goes(page, caller, workers):
    caller.load("fake/vision", workers=[worker.name for worker in workers])
    first, second = (worker.name for worker in workers)
    page.see(DEVICE_ROW, first)
    page.press(f"[data-worker='{first}'] [data-model='fake/vision'] [data-action=unload]")
    page.see(f"!{DEVICE_ROW}", first)
    assert page.run(f"return Boolean({DEVICE_ROW})", second)
    page.see(
        "document.querySelector('#events tr[data-kind=unloaded]').innerText.includes('flower')"
    )
    held = {worker.name: [m.id for m in worker.held] for worker in caller.status().workers}
    assert held == {first: [], second: ["fake/vision"]}


def test_a_sweep_takes_an_idle_model_down_while_one_watches(page, caller, workers):
    name = workers[0].name
    caller.load("fake/vision", workers=[name])
    page.see(DEVICE_ROW, name)
    caller.set_knobs({"vision_ram_timeout_s": 0.5}, workers=[name])
    page.see(f"!{DEVICE_ROW}", name)
    page.see(f"{UNLOADED}.includes('idle')")
    caller.set_knobs({"vision_ram_timeout_s": 1800}, workers=[name])


def test_a_setting_is_changed_and_a_model_loaded_by_the_page(page, caller, workers):
    name = workers[1].name
    page.see("document.querySelector('#catalogue option[value=\"fake/words\"]')")
    page.run(
        """const bar = document.getElementById('commands');
        bar.model.value = 'fake/words'; bar.worker.value = arguments[0];
        bar.querySelector('[value=load]').click()""",
        name,
    )
    page.see(
        "document.querySelector(`[data-worker='${arguments[0]}'] [data-model='fake/words']`)", name
    )
    page.run(
        """const form = document.querySelector(`form[data-worker='${arguments[0]}']`);
        form.value.focus(); form.value.value = '3'; form.value.oninput(); form.requestSubmit()""",
        name,
    )
    page.see("document.body.innerText.includes('3 slots')")


def test_a_field_that_somebody_left_keeps_no_worker_from_being_redrawn(page):
    page.run(
        "window.card = document.querySelector('[data-worker]'); card.querySelector('input').focus()"
    )
    page.run("const { now } = Date; Date.now = () => now() + 60000")
    page.see("!document.contains(card)")


def two_looks(page):
    """Waits until the page has asked twice more how things are."""
    page.run("performance.clearResourceTimings()")
    looks = "performance.getEntriesByType('resource').filter(it => it.name.endsWith('/models/now'))"
    page.see(f"{looks}.length > 1")


@pytest.fixture
def unload(page, caller, workers):
    """The selector of a button."""
    caller.load("fake/vision", workers=[workers[0].name])
    page.see(DEVICE_ROW, workers[0].name)
    return f"[data-worker='{workers[0].name}'] [data-model='fake/vision'] [data-action=unload]"


def test_who_has_come_to_a_button_by_the_keyboard_stays_there(page, unload):
    page.run("document.querySelector(arguments[0]).focus()", unload)
    two_looks(page)
    assert page.run(
        "return document.activeElement === document.querySelector(arguments[0])", unload
    )


def test_a_button_that_is_pressed_for_long_is_pressed(page, workers, unload):
    page.run("document.querySelector(arguments[0]).focus()", unload)
    page.space_down()
    two_looks(page)
    page.space_up()
    page.see(f"!{DEVICE_ROW}", workers[0].name)


def test_on_a_narrow_screen_a_table_stays_where_it_was_scrolled_to(page):
    page.run("document.getElementById('workers').style.width = '500px'")
    page.run("document.querySelector('#workers .table-responsive').scrollLeft = 300")
    two_looks(page)
    assert page.run("return document.querySelector('#workers .table-responsive').scrollLeft") == 300


def test_a_browser_that_has_the_script_asks_whether_it_is_still_ours(looking_on):
    login = "clipyard", PASSWORD
    script = httpx.get(f"http://{looking_on}/models/static/models.js", auth=login)
    assert script.headers["cache-control"] == "no-cache"


def test_what_is_read_out_is_written_when_it_changes_only(looking_on, chromium):
    chromium.open(f"http://clipyard:{PASSWORD}@{looking_on}/models")
    chromium.see("document.getElementById('alarms').innerText.includes('No worker is alive')")
    chromium.see("document.getElementById('live').textContent === 'Live'")
    chromium.run(
        """window.written = [];
        const watch = new MutationObserver((changes) => written.push(...changes));
        for (const part of document.querySelectorAll('[role=alert], [aria-live]'))
          watch.observe(part, { childList: true, characterData: true, subtree: true })"""
    )
    two_looks(chromium)
    assert chromium.run("return written.length") == 0


def test_a_long_name_is_not_written_over_what_stands_beside_it(looking_on, chromium, store, keys):
    now, name = time.time(), "m/" + "x" * 198
    told = {"device": "cpu", "pid": 1, "started_at": now, "beat_at": now, "state": "ready"}
    store.sadd(keys.workers, "cpu0@a")
    status = WorkerStatus(name="cpu0@a", models=(name,), **told)
    store.hset(keys.worker("cpu0@a"), mapping=pack_record(status))
    model = ModelStatus(id=name, state="device", type="vision")
    store.hset(keys.model("cpu0@a", name), mapping=pack_record(model))
    chromium.open(f"http://clipyard:{PASSWORD}@{looking_on}/models")
    cell = "document.querySelector('[data-model] td:nth-child(2)')"
    chromium.see(cell)
    assert chromium.run(f"return {cell}.scrollWidth <= {cell}.offsetWidth")


def test_what_is_taken_and_done_is_seen_in_forced_colours_too(page, fleet, caller, unload):
    a_job(fleet, caller, items=50)
    drawn = """(selector => {
        const part = document.querySelector(selector);
        return part && getComputedStyle(part).backgroundColor !== arguments[0];
    })"""
    with page.forced_colours():
        canvas = page.run("return getComputedStyle(document.body).backgroundColor")
        for part in DRAWN:
            page.see(f"{drawn}('{part}')", canvas)


def test_what_is_taken_and_done_is_printed_too(page, fleet, caller, unload):
    a_job(fleet, caller, items=50)
    style = "(selector => getComputedStyle(document.querySelector(selector)).printColorAdjust)"
    page.see("document.querySelector('#jobs .progress-bar')")
    assert {page.run(f"return {style}('{part}')") for part in DRAWN} == {"exact"}


def test_a_bulk_job_is_watched_from_its_start_to_its_end(page, fleet, caller):
    job = a_job(fleet, caller)
    row = f"document.querySelector('[data-job=\"{job.id}\"]')?.innerText ?? ''"
    page.see(f"({row}).includes('running')")
    page.see("document.getElementById('tiles').innerText.includes('items to go')")
    page.see(f"({row}).includes('complete') && ({row}).includes('400 of 400')")


def a_job(fleet, caller, *, items=400):
    home = fleet.logs.parent
    texts = home / "texts.jsonl"
    texts.write_text("".join(f'{{"text": "number {n}"}}\n' for n in range(items)))
    sink = home / f"vectors-{time.monotonic_ns()}"
    return caller.reembed(texts, sink=sink, model="fake/slow", chunk_size=50)


@pytest.mark.skipif("CLIPYARD_SCREENSHOTS" not in os.environ, reason="keeps the pictures in docs")
def test_pictures_for_the_documentation(page, fleet, caller, workers, site):
    name = workers[0].name
    (fleet.logs.parent / "not-mounted").mkdir()
    a_job(fleet, caller, items=2500)
    caller.load("shapes/demo", workers=[worker.name for worker in workers])
    caller.load("fake/vision", workers=[name])
    page.see(DEVICE_ROW, name)
    page.see("document.body.innerText.includes('All is well')")
    going = "row => /running[^]*[1-9][0-9]? %/.test(row.innerText)"
    page.see(f"[...document.querySelectorAll('[data-job]')].some({going})")
    page.resize(height=1650)
    page.shot(IMAGES / "models-page.png")
    page.resize(height=1150)
    (fleet.logs.parent / "not-mounted").rmdir()
    page.open(f"http://{site}/worker/{name}")
    page.press("#worker-tab-other")
    page.see("getComputedStyle(document.getElementById('tab-other')).opacity === '1'")
    page.shot(IMAGES / "worker-page.png")


def test_a_fleet_without_workers_or_beat_is_told_plainly(looking_on, chromium, store, keys):
    chromium.open(f"http://clipyard:{PASSWORD}@{looking_on}/models")
    chromium.see("document.getElementById('alarms').innerText.includes('No worker is alive')")
    now = time.time()
    told = {"device": "cuda:0", "pid": 1, "started_at": now - 999, "beat_at": now, "state": "ready"}
    status = WorkerStatus(name="gpu0@a", sweep_interval_s=60, **told)
    store.sadd(keys.workers, "gpu0@a")
    store.hset(keys.worker("gpu0@a"), mapping=pack_record(status))
    chromium.see("document.getElementById('alarms').innerText.includes('The beat is missing')")
    assert not chromium.run("return document.querySelector('button[data-action], #commands')")


def test_a_worker_with_slots_without_end_is_shown(looking_on, chromium, store, keys):
    now = time.time()
    told = {"device": "cpu", "pid": 1, "started_at": now, "beat_at": now, "state": "ready"}
    status = WorkerStatus(name="cpu0@a", slots=10**9, **told)
    store.sadd(keys.workers, "cpu0@a")
    store.hset(keys.worker("cpu0@a"), mapping=pack_record(status))
    chromium.open(f"http://clipyard:{PASSWORD}@{looking_on}/models")
    chromium.see("document.querySelector('.models-worker')?.innerText.includes('1000000000 slots')")


def test_a_dashboard_that_says_nothing_any_more_is_not_live(looking_on, chromium, prefix):
    told = "document.getElementById('live').textContent"
    chromium.open(f"http://clipyard:{PASSWORD}@{looking_on}/models")
    chromium.see(f"{told} === 'Live'")
    chromium.run("window.timeout = AbortSignal.timeout.bind(AbortSignal)")
    chromium.run("AbortSignal.timeout = () => timeout(300)")
    [dashboard] = [
        child
        for child in psutil.Process().children()
        if child.environ().get("CLIPYARD_KEY_PREFIX") == prefix
    ]
    dashboard.suspend()
    try:
        chromium.see(f"{told} === 'The dashboard does not answer'")
        chromium.see("document.getElementById('well').textContent === 'As it was last seen.'")
    finally:
        dashboard.resume()
    chromium.run("AbortSignal.timeout = timeout")
    chromium.see(f"{told} === 'Live'")


def test_a_dashboard_that_wants_another_password_says_so(looking_on, chromium):
    told = "document.getElementById('live').textContent"
    chromium.open(f"http://clipyard:{PASSWORD}@{looking_on}/models")
    chromium.see(f"{told} === 'Live'")
    chromium.run(
        "const { fetch } = window; window.fetch = (at) => fetch(at, { credentials: 'omit' })"
    )
    chromium.see(f"{told} === 'Another password is wanted: load the page again'")


def submit(job_id, store, keys, valkey_url):
    """A job that no worker plans."""
    spec = JobSpec(
        id=job_id,
        source=Place(kind="list", where="/list"),
        model="clip/a",
        sink=Place(kind="parquet", where="/sink"),
    )
    submission(keys, spec, Settings.read(redis_url=valkey_url))(store)


def test_a_bulk_job_is_shown_with_its_progress(looking_on, chromium, store, keys, valkey_url):
    submit("nightly", store, keys, valkey_url)
    store.hset(keys.job("nightly"), mapping={"state": "running", "chunks": 4, "items": 4000})
    store.setbit(keys.job_done("nightly"), 0, 1)
    chromium.open(f"http://clipyard:{PASSWORD}@{looking_on}/models")
    chromium.see("document.querySelector('[data-job=nightly]')?.innerText.includes('25 %')")
    store.hset(keys.job("nightly"), mapping={"state": "paused", "reason": "the disk is full"})
    told = "document.querySelector('[data-job=nightly] + tr td')"
    chromium.see(f"{told}?.innerText === 'the disk is full'")  # as wide as the table: it is long
    assert chromium.run(f"return {told}.offsetWidth === {told}.closest('tbody').offsetWidth")


def test_the_first_chunks_that_end_tell_no_rate(looking_on, chromium, store, keys, valkey_url):
    submit("nightly", store, keys, valkey_url)
    store.hset(keys.job("nightly"), mapping={"state": "running", "chunks": 4, "items": 4000})
    chromium.open(f"http://clipyard:{PASSWORD}@{looking_on}/models")
    chromium.see("document.querySelector('[data-job=nightly]')")
    store.hset(keys.job("nightly"), "done", 2000)
    row = "[...document.querySelector('[data-job=nightly]').cells].map(cell => cell.innerText)"
    chromium.see(f"{row}.includes('2,000 of 4,000')")
    assert chromium.run(f"return {row}.slice(6, 8)") == ["", ""]


def test_what_others_wrote_is_shown_as_text(looking_on, chromium, store, keys, valkey_url):
    submit("nightly", store, keys, valkey_url)
    reason = "<img src=x onerror='window.hit=1'>"
    store.hset(keys.job("nightly"), mapping={"state": "paused", "reason": reason})
    chromium.open(f"http://clipyard:{PASSWORD}@{looking_on}/models")
    chromium.see(
        "document.querySelector('[data-job=nightly] + tr td')?.innerText === arguments[0]", reason
    )
    assert chromium.run("return window.hit === undefined")


def test_nor_is_what_a_worker_counts_markup(looking_on, chromium, valkey_url, prefix):
    chromium.open(f"http://clipyard:{PASSWORD}@{looking_on}/")
    with (
        celery_app(Settings.read(redis_url=valkey_url, key_prefix=prefix)) as app,
        app.events.default_dispatcher(hostname="cpu0@a") as dispatcher,
    ):

        def is_shown():
            dispatcher.send("worker-heartbeat", active="<img src=x onerror='window.hit=1'>")
            dispatcher.send("worker-online")
            return chromium.run("return document.body.innerText.includes('cpu0@a')")

        until(is_shown)
    assert not chromium.run("return document.querySelector('#workers-table img')")


def test_a_job_may_have_any_name(looking_on, chromium, store, keys, valkey_url):
    submit("constructor", store, keys, valkey_url)
    chromium.open(f"http://clipyard:{PASSWORD}@{looking_on}/models")
    chromium.see("document.querySelector('[data-job=constructor]')?.innerText.includes('clip/a')")


@pytest.mark.parametrize("path", ["models/static/%00", "static/%00"])
def test_a_file_that_no_folder_can_hold_is_not_found(looking_on, path):
    answer = httpx.get(f"http://{looking_on}/{path}", auth=("clipyard", PASSWORD))
    assert answer.status_code == 404


def test_a_dashboard_that_may_only_look_refuses_every_button(looking_on):
    flowers = ("worker/shutdown", "worker/pool/restart", "task/async-apply", "task/revoke")
    for path in (
        *(f"models/do/{action}" for action in ACTIONS),
        *(f"api/{it}/x" for it in flowers),
    ):
        reply = httpx.post(f"http://{looking_on}/{path}", json={}, auth=("clipyard", PASSWORD))
        assert reply.status_code == 403, path


@pytest.fixture
def http(fleet, site):
    with httpx.Client(base_url=f"http://{site}", auth=("clipyard", PASSWORD)) as http:
        yield http


@pytest.mark.parametrize(
    "path", ["/", "/models", "/models/now", "/metrics", "/healthcheck", "/api/workers", "/nowhere"]
)
def test_no_path_is_open_to_strangers(fleet, site, path):
    assert httpx.get(f"http://{site}{path}").status_code == 401
    assert httpx.get(f"http://{site}{path}", auth=("clipyard", "wrong")).status_code == 401


def test_a_stranger_is_answered_before_a_body_comes(fleet, site):
    host, _, port = site.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as stranger:
        stranger.sendall(b"POST /models HTTP/1.1\r\nHost: a\r\nContent-Length: 90000000\r\n\r\n")
        assert stranger.recv(99).startswith(b"HTTP/1.1 401")


def test_a_page_of_another_site_cannot_press_buttons(http):
    reply = http.post("/models/do/sweep", json={}, headers={"Origin": "http://evil.example"})
    assert reply.status_code == 403


@pytest.mark.parametrize("path", ["/", "/models", "/nowhere"])
def test_a_page_of_another_site_cannot_show_ours_within_it(http, path):
    assert http.get(path).headers["X-Frame-Options"] == "DENY"


def test_what_cannot_be_done_is_told_in_a_sentence(http):
    reply = http.post("/models/do/load", json={"model": "fake/nothing"})
    assert (reply.status_code, reply.json()["code"]) == (400, "unknown_model")
    assert http.post("/models/do/load", json={}).status_code == 400
    assert http.post("/models/do/set", json={"name": "slots", "value": "x"}).status_code == 400
    assert http.post("/models/do/shutdown", json={}).status_code == 404
    for name in ("load", "switch", "unload", "set", "sweep"):
        for body in (b"[]", b"null", b"{", b"\xff", b"[" * 100_000):
            reply = http.post(f"/models/do/{name}", content=body)
            assert (reply.status_code, reply.json()["code"]) == (400, "bad_request")


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_a_button_waits_as_long_as_the_setting_says(store, keys, valkey_url, prefix, name):
    store.sadd(keys.workers, "gpu0@a")
    store.hset(keys.worker("gpu0@a"), "started_at", "1")
    asked = {"model": "a/b", "name": "slots", "value": 2, "worker": "gpu0@a"}
    settings = Settings.read(redis_url=valkey_url, key_prefix=prefix, answer_timeout_s=0.1)
    with Client(settings) as client, pytest.raises(NoAnswer, match="CLIPYARD_ANSWER_TIMEOUT_S"):
        ACTIONS[name](client, asked)


def test_a_sweep_goes_by_the_timeouts_and_then_by_what_memory_is_still_short_of():
    asked = []

    class Asked(FakeClient):
        def unload(self, model=None, **options):
            asked.append(options)
            return super().unload(model, **options)

    answers = ACTIONS["sweep"](Asked(), {"worker": NODE})
    assert asked == [{"scope": scope, "workers": [NODE]} for scope in ("timeout", "pressure")]
    assert len(answers) == 2


def test_flowers_own_pages_work_and_lead_to_ours(http):
    for path in ("/", "/tasks", "/broker", "/models"):
        reply = http.get(path)
        assert reply.status_code == 200
        assert 'href="/models"' in reply.text
    assert "embed" in http.get("/broker").text


def test_flowers_broker_page_trusts_a_private_ca_too(tmp_path):
    (tmp_path / "ca.pem").touch()
    url = f"rediss://host/0?ssl_ca_certs={tmp_path}/ca.pem"
    with celery_app(Settings.read(redis_url=url)) as app:
        trust_as_the_url_says(app)
        broker = Broker(app.connection().as_uri(), broker_use_ssl=app.conf.broker_use_ssl)
    asked = broker.redis.connection_pool.connection_kwargs
    assert asked["ssl_ca_certs"] == f"{tmp_path}/ca.pem"
    assert asked["ssl_cert_reqs"] is ssl.CERT_REQUIRED


def test_flower_shows_the_slots_and_shortened_tasks(http, caller, workers):
    caller.embed_texts(["a secret sentence"] * 3)
    stats = http.get("/api/workers", params={"refresh": "true"}).json()
    assert set(stats) == {worker.name for worker in workers}
    shown = [told["stats"]["slots"] for told in stats.values()]
    assert any("fake/vision" in slots for slots in shown)
    tasks = http.get("/api/tasks", params={"taskname": "clipyard.embed_batch"}).json()
    assert tasks
    shown = [task["kwargs"] for task in tasks.values()]
    assert str({"asked_by": "test", "model": "fake/vision", "texts": 3}) in shown
    assert "secret" not in str(tasks)
