import json
import subprocess
import sys
from pathlib import Path

import pytest

from api_client.wire import correlation, logs
from api_client.wire.errors import BadSettings
from api_client.wire.logs import PARTS, LogSettings, part_of

# In a process of its own: logging is set up once in the life of one.
PROGRAM = """
import logging, sys
from api_client.wire import correlation, logs
logs.set_up(logs.LogSettings.read())
logging.getLogger("worker.residency.slots").debug("a lease for %s", "clip/a")
with correlation.about("order-7"):
    logging.getLogger("worker.datapath.batcher").warning("two\\n\\x1b[2Jlines")
    logging.getLogger("worker.residency.sweeping").info("never shown")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("api_client.gateway.app").exception("it broke")
"""


@pytest.fixture
def said(monkeypatch):
    def said(program=PROGRAM, **env):
        for name, value in env.items():
            monkeypatch.setenv(name, str(value))
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        return done.stderr.splitlines()

    return said


def test_lines_are_readable_by_default_and_each_part_has_its_level(said):
    lines = said(CLIPYARD_LOG_LEVELS="slots=debug,sweeps=WARNING")
    assert lines[0].endswith("DEBUG slots: a lease for clip/a")
    assert "WARNING data: two" in lines[1]
    assert lines[2] == r"    \x1b[2Jlines [order-7]"
    assert not any("never shown" in line for line in lines)
    assert lines[-1] == "    ZeroDivisionError: division by zero"


def test_a_level_is_its_parts_own_though_another_ones_loggers_lie_below_it(said):
    lines = said(CLIPYARD_LOG_LEVELS="data=ERROR")
    assert any("never shown" in line for line in lines)  # of the sweeps
    assert not any("two" in line for line in lines)


def test_on_demand_every_line_is_one_json_object_with_the_callers_id(said):
    batch, sweep, broken = map(json.loads, said(CLIPYARD_LOG_FORMAT="json"))
    assert (batch["part"], batch["message"], batch["correlation"]) == (
        "data",
        "two\n\x1b[2Jlines",
        "order-7",
    )
    assert sweep["level"] == "INFO"
    assert "correlation" not in broken
    assert "ZeroDivisionError" in broken["traceback"]


def test_what_a_library_asks_for_is_in_no_line(said):
    asks = """
import http.server, threading, httpx, httpx2, urllib3

class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", "/weights?signature=secret")
        self.end_headers()

    def log_message(self, *_):
        pass

hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=hub.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{hub.server_port}/?signature=secret"
for library in httpx, httpx2:
    library.get(address)
urllib3.request("GET", address, redirect=False)
"""
    lines = said(PROGRAM + asks, CLIPYARD_LOG_LEVEL="DEBUG")
    assert lines
    assert not any("signature" in line for line in lines)


def test_each_part_can_have_a_file_of_its_own(said, tmp_path):
    said(CLIPYARD_LOG_DIR=tmp_path / "logs", CLIPYARD_LOG_LEVELS="slots=DEBUG")
    written = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert set(written) == {"slots.log", "data.log", "sweeps.log", "gateway.log"}
    assert "a lease for clip/a" in written["slots.log"]
    assert "[order-7]" in written["data.log"]


@pytest.mark.parametrize(
    ("logger", "part"),
    [
        ("worker.residency.slots", "slots"),
        ("worker.slotsandmore", "data"),
        ("worker.backends.openclip", "data"),
        ("worker.reembed.ledger", "jobs"),
        ("celery.worker.strategy", "messages"),
        ("urllib3", "other"),
    ],
)
def test_a_logger_writes_for_the_part_it_lies_in(logger, part):
    assert part_of(logger) == part


@pytest.mark.parametrize(
    "levels", ["slots=debug, jobs=ERROR", '{"slots": "DEBUG", "jobs": "ERROR"}']
)
def test_levels_are_read_as_pairs_and_as_json(levels, monkeypatch):
    monkeypatch.setenv("CLIPYARD_LOG_LEVELS", levels)
    assert LogSettings.read().log_levels == {"slots": "DEBUG", "jobs": "ERROR"}


@pytest.mark.parametrize("levels", ["{", "slot=DEBUG", "slots=LOUD", "slots"])
def test_a_part_or_level_that_is_not_there_stops_the_start(levels, monkeypatch):
    monkeypatch.setenv("CLIPYARD_LOG_LEVELS", levels)
    with pytest.raises(BadSettings, match="CLIPYARD_LOG_LEVELS"):
        LogSettings.read()


def test_every_part_is_documented():
    page = (Path(logs.__file__).parents[2] / "docs" / "logs.md").read_text()
    assert all(f"| `{part}` |" in page for part in (*PARTS, logs.OTHER))


@pytest.mark.parametrize("given", [None, 7, "", "two words", "x" * 65, "new\nline"])
def test_an_id_that_could_forge_a_line_is_not_taken(given):
    assert correlation.accepted(given) == ""


def test_a_shared_batch_names_a_few_of_its_callers():
    with correlation.about_many(["a", "b", "a", "", "c", "d"]):
        assert correlation.current() == "a,b,c+1"
    assert correlation.current() == ""


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder, why in (("file", "File exists"), ("file/below", "Not a directory")):
        with pytest.raises(BadSettings, match=f"CLIPYARD_LOG_DIR: .*{folder}: {why}"):
            logs.set_up(LogSettings.read(log_dir=tmp_path / folder))


def test_a_file_that_cannot_be_opened_does_not_fail_the_work(said, tmp_path):
    (tmp_path / "data.log").mkdir()
    assert "it broke" in "".join(said(CLIPYARD_LOG_DIR=tmp_path))


def test_a_full_disk_is_told_once_and_without_a_traceback(said, tmp_path):
    (tmp_path / "data.log").symlink_to("/dev/full")
    again = PROGRAM.replace("logs.set_up(logs.LogSettings.read())", "")
    lines = said(PROGRAM + again, CLIPYARD_LOG_DIR=tmp_path, CLIPYARD_LOG_FORMAT="json")
    told = [json.loads(line)["message"] for line in lines]
    assert [one for one in told if "data.log" in one] == [
        f"{tmp_path}/data.log cannot be written: No space left on device"
    ]


def test_below_each_name_of_a_part_somebody_logs():
    root = Path(__file__).parents[2]
    ours = [
        file for part in ("api_client", "worker", "tasks") for file in (root / part).rglob("*.py")
    ]
    logging = {
        ".".join(file.relative_to(root).with_suffix("").parts)
        for file in ours
        if "getLogger(__name__)" in file.read_text()
    }
    names = {name for part in PARTS.values() for name in part} - {"uvicorn", "celery", "kombu"}
    assert all(any(f"{one}.".startswith(f"{name}.") for one in logging) for name in names)
    told_apart = {one for one in logging if one.startswith(("worker.", "tasks."))}
    assert all(part_of(one) != logs.OTHER for one in told_apart)
