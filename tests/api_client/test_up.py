import fcntl
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import redis
from celery import Celery
from rich.console import Console

from api_client.stack import up
from api_client.stack.devices import devices_in, visible_devices
from api_client.stack.errors import CrashLoop, InUse, NoCheckout, StackError
from api_client.stack.home import held, private_directory, rewrite
from api_client.stack.settings import StackSettings
from api_client.stack.supervisor import Patience
from api_client.stack.up import Extra, Options, find_checkout, node_names, run, temporary_stack
from api_client.stack.valkey import PrivateValkey
from api_client.wire.home import running_stack_url
from tests.flow.processes import until

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

BOUND_S = 30.0
REPOSITORY = Path(up.__file__).parents[2]
GPUS = """\
GPU 0: NVIDIA H200 (UUID: GPU-a)
  MIG 1g.18gb     Device  0: (UUID: MIG-b)
GPU 1: NVIDIA H200 (UUID: GPU-c)
"""

# Stands where Celery would: it is quicker to start, and says how it was started.
STAND_IN = """
import os, signal, sys
if os.environ.get("CLIPYARD_DEVICE") == "broken":
    sys.exit("no such device")
print(os.environ["CLIPYARD_REDIS_URL"], os.environ.get("CLIPYARD_DEVICE"), *sys.argv[1:])
print("it is ready.", flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
signal.pause()
"""
REAL = """
import os
from celery import Celery
app = Celery("real", broker=os.environ["CLIPYARD_REDIS_URL"])
app.conf.update(result_backend=os.environ["CLIPYARD_REDIS_URL"], beat_schedule={})
@app.task(name="double")
def double(number): return 2 * number
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout to stand in, whose Celery is the stand-in."""
    place = tmp_path / "checkout"
    for file, text in (
        ("worker/app.py", ""),
        ("celery/__init__.py", ""),
        ("celery/__main__.py", STAND_IN),
    ):
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(text)
    (place / "beat_schedule").mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def options(home: Path, *devices: str, **rest) -> Options:
    brisk = Patience(first_delay_s=0.01)
    return Options(home=home, devices=devices or ("cpu",), patience=brisk, **rest)


@contextmanager
def run_elsewhere(home: Path, checkout: Path) -> Iterator[subprocess.Popen]:
    """`run` in a process of its own, once its worker is ready."""
    program = (
        "import sys; from pathlib import Path; from rich.console import Console;"
        "from api_client.stack.up import Options, run;"
        "options = Options(home=Path(sys.argv[1]), devices=('cpu',));"
        "run(options, console=Console(width=200))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(home)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            for line in process.stdout:
                if "cpu0 is ready" in line:
                    break
            yield process
        finally:
            process.kill()  # else the block waited for it for ever


def test_every_gpu_that_is_listed_gets_a_worker():
    assert devices_in(GPUS, cuda_visible=None) == ("cuda:0", "cuda:1")
    assert devices_in("No devices were found", cuda_visible=None) == ("cpu",)


@pytest.mark.parametrize(
    ("cuda_visible", "devices"),
    [
        *(("", ("cpu",)), ("-1", ("cpu",)), ("none", ("cpu",))),
        *(("1", ("cuda:0",)), ("1,,0", ("cuda:0",))),
        *(("1, 0", ("cuda:0", "cuda:1")), ("GPU-1a,GPU-2b,-1", ("cuda:0", "cuda:1"))),
    ],
)
def test_cuda_numbers_the_gpus_it_shows_from_zero(cuda_visible, devices):
    assert devices_in(GPUS, cuda_visible=cuda_visible) == devices


def test_the_gpus_are_asked_for_where_there_is_a_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_devices(cuda_visible=None) == ("cpu",)
    program = tmp_path / "nvidia-smi"
    for script, devices in ((f"echo '{GPUS}'", ("cuda:0",)), ("exit 9", ("cpu",))):
        program.write_text(f'#!/bin/sh\n[ "$*" = -L ] || exit 1\n{script}\n')
        program.chmod(0o755)
        assert visible_devices(cuda_visible="1") == devices


def test_a_device_keeps_its_node_name():
    assert node_names(["cuda:1", "cuda:0", "cpu", "cpu"]) == ["gpu1", "gpu0", "cpu0", "cpu1"]


def test_two_workers_of_one_device_are_two_nodes():
    assert node_names(["cuda:1", "cuda:1", "cuda"]) == ["gpu1", "gpu1-1", "gpu2"]


def test_workers_see_the_gpus_that_they_were_counted_among(monkeypatch):
    monkeypatch.setenv("CLIPYARD_CUDA_VISIBLE_DEVICES", "1")
    assert StackSettings.read().for_workers()["CUDA_VISIBLE_DEVICES"] == "1"


def test_no_gpu_that_is_visible_is_another_thing_than_nothing_said_of_it(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert StackSettings.read().cuda_visible_devices is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert StackSettings.read().cuda_visible_devices == ""


def test_only_workers_of_a_private_stack_open_and_write_what_their_owner_may(monkeypatch):
    confined = ("CLIPYARD_IMAGE_ROOTS", "CLIPYARD_SINK_ROOTS", "CLIPYARD_SINK_ADDRESSES")
    env = StackSettings.read().for_workers()
    assert [env[name] for name in confined] == ['["/"]', '["/"]', '["*"]']
    monkeypatch.setenv("CLIPYARD_REDIS_URL", "redis://where.others.are")
    assert not set(confined) & set(StackSettings.read().for_workers())
    monkeypatch.setenv("CLIPYARD_SINK_ROOTS", '["/srv/vectors"]')
    asked = StackSettings.read(image_roots=["/photos"], sink_addresses=["pg://db/"]).for_workers()
    assert [asked[name] for name in confined] == ['["/photos"]', '["/srv/vectors"]', '["pg://db/"]']


def test_files_and_folders_are_those_of_where_up_was_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {f"{name}_dir": name for name in ("models", "cache", "jobs", "log")}
    (tmp_path / "mine.json").write_text(json.dumps(folders | {"default_model": "a/b"}))
    monkeypatch.setenv("CLIPYARD_CONFIG", "mine.json")
    monkeypatch.setenv("CLIPYARD_CATALOGUE", "mine.toml")
    monkeypatch.setenv("CLIPYARD_SIGNING_KEY_FILE", "signing.key")
    (tmp_path / "signing.key").write_text("k" * 16)
    env = StackSettings.read().for_workers()
    worker, beat = up._children(
        options(tmp_path, env=env), url="redis://127.0.0.1", checkout=REPOSITORY
    )
    assert worker.env["CLIPYARD_CATALOGUE"] == f"{tmp_path}/mine.toml"
    for setting, folder in folders.items():
        assert worker.env[f"CLIPYARD_{setting.upper()}"] == f"{tmp_path}/{folder}"
    assert worker.env["CLIPYARD_DEFAULT_MODEL"] == "a/b"
    for child in (worker, beat):
        assert child.env["CLIPYARD_CONFIG"] == f"{tmp_path}/mine.json"
        assert child.env["CLIPYARD_SIGNING_KEY_FILE"] == f"{tmp_path}/signing.key"


def test_without_a_checkout_the_error_says_where_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(up, "__file__", str(tmp_path / "site" / "api_client" / "stack" / "up.py"))
    with pytest.raises(NoCheckout, match="run from a checkout of Clipyard"):
        find_checkout()


def test_the_children_are_told_which_redis_and_which_device(home, checkout, told):
    with temporary_stack(options(home, "cpu", "cuda:1"), tell=told) as stack:
        stack.supervisor.wait_ready(within_s=BOUND_S)
        cpu, gpu = ((stack.logs / f"{name}.log").read_text() for name in ("cpu0", "gpu1"))
    worker = "-A worker.app worker -P threads -l INFO --without-gossip --without-mingle -n"
    assert cpu.startswith(f"{stack.url} cpu {worker} cpu0@%h\n")
    assert gpu.startswith(f"{stack.url} cuda:1 {worker} gpu1@%h\n")


def test_a_client_that_was_told_of_no_redis_finds_the_stack_while_it_runs(home, checkout, told):
    with temporary_stack(options(home), tell=told) as stack:
        assert running_stack_url(home) == stack.url
        assert stat.S_IMODE((home / "stack.json").stat().st_mode) == 0o600
        assert json.loads((home / "stack.json").read_text())["pid"] == os.getpid()
    assert not (home / "stack.json").exists()


def test_a_configured_redis_is_used_instead_of_a_private_one(home, checkout, told, tmp_path):
    with PrivateValkey(tmp_path / "elsewhere") as theirs:
        with temporary_stack(options(home, redis_url=theirs.url), tell=told) as stack:
            assert stack.url == theirs.url
        assert theirs.running.exit_code() is None
    assert not (home / "valkey").exists()


def test_a_home_that_takes_no_more_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (tmp_path / "file").open("rb") as full, pytest.raises(StackError, match="CLIPYARD_HOME"):
        rewrite(full.fileno(), "anything")


def test_what_was_open_to_others_is_so_no_longer_and_says_what_is_written_last(tmp_path):
    file = tmp_path / "made" / "too" / "stack.json"
    private_directory(file.parent)
    file.parent.chmod(0o755)
    file.write_text("of a stack that was killed")
    file.chmod(0o644)
    with held(private_directory(file.parent) / file.name) as descriptor:
        rewrite(descriptor, "of this one")
    assert file.read_text() == "of this one"
    assert [stat.S_IMODE(one.stat().st_mode) for one in (file.parent, file)] == [0o700, 0o600]


def test_a_link_in_the_place_of_a_file_of_ours_is_not_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StackError, match="cannot use"), held(tmp_path / "link"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_a_lock_on_a_file_that_its_last_holder_removes_meanwhile_is_none(
    tmp_path, monkeypatch, is_made_anew
):
    def flock(*args):
        monkeypatch.undo()
        fcntl.flock(*args)
        (tmp_path / "lock").unlink()
        if is_made_anew:
            (tmp_path / "lock").touch()

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(tmp_path / "lock") as descriptor:
        assert os.path.samestat(os.fstat(descriptor), (tmp_path / "lock").stat())


def test_two_stacks_run_side_by_side_and_never_in_one_home(home, checkout, told, tmp_path):
    with (
        temporary_stack(options(home), tell=told) as one,
        temporary_stack(options(tmp_path / "other"), tell=told) as other,
    ):
        assert one.url != other.url
        holder = rf"\(process {os.getpid()}\): stop it, or set CLIPYARD_HOME"
        with pytest.raises(InUse, match=holder), temporary_stack(options(home), tell=told):
            pass
        assert running_stack_url(home) == one.url


def test_an_error_in_the_block_ends_the_stack(home, checkout, told):
    with pytest.raises(ZeroDivisionError), temporary_stack(options(home), tell=told):
        _ = 1 / 0
    assert not (home / "stack.json").exists()


def test_a_crash_loop_ends_the_run_with_the_end_of_the_log(home, checkout):
    with pytest.raises(CrashLoop, match="no such device"):
        run(options(home, "broken"), console=Console(file=io.StringIO()))


def test_what_listens_where_is_shown_with_the_password_masked(home, checkout):
    console = Console(file=io.StringIO(), width=200)
    extra = Extra(
        name="dashboard", argv=(sys.executable, "-c", ""), address="http://127.0.0.1:5555"
    )
    with pytest.raises(CrashLoop, match="dashboard exited"):
        run(options(home, extras=(extra,)), console=console)
    shown = console.file.getvalue()
    assert "redis://:***@127.0.0.1:" in shown
    assert "http://127.0.0.1:5555" in shown


def test_each_workers_metrics_are_shown_where_it_serves_them(home):
    wanted = options(home, "cpu", "cpu", metrics_host="10.0.0.1", metrics_port=9300)
    console = Console(file=io.StringIO(), width=200)
    console.print(up._listening(up.Stack(url="redis://h", logs=home, supervisor=None), wanted))
    shown = console.file.getvalue()
    one, other, _ = up._children(wanted, url="", checkout=home)
    for worker, port in ((one, 9300), (other, 9301)):
        assert worker.env["CLIPYARD_METRICS_PORT"] == str(port)
        assert f"http://10.0.0.1:{port}/metrics" in shown


def test_no_worker_has_metrics_where_no_port_is_set(home):
    one, other, _ = up._children(options(home, "cpu", "cpu"), url="", checkout=home)
    assert [worker.env["CLIPYARD_METRICS_PORT"] for worker in (one, other)] == ["0", "0"]


def test_nothing_of_where_it_listens_is_cut_where_a_terminal_is_narrow(home):
    console = Console(file=io.StringIO(), width=40)
    logs = home / ("x" * 30)
    stack = up.Stack(url="redis://h", logs=logs, supervisor=None)
    console.print(up._listening(stack, options(home)))
    assert "…" not in (shown := console.file.getvalue())
    assert str(logs) in re.sub(r"[\s│]", "", shown)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_drains_the_run_and_leaves_nothing(home, checkout, gone, how):
    with run_elsewhere(home, checkout) as process:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
        assert process.wait(BOUND_S) == 0
        assert gone(family)
    assert not (home / "stack.json").exists()


def test_a_terminal_that_closes_tells_of_it_twice_and_hurries_nobody():
    before = signal.getsignal(signal.SIGHUP)
    with up._unwinding_on(signal.SIGHUP):
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is before


def test_a_signal_that_is_ignored_stays_so_as_nohup_wants_it():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with up._unwinding_on(signal.SIGHUP):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_comes_while_something_is_told_is_heard(home, monkeypatch):
    class Slow(Console):
        def print(self, what):
            super().print(what)
            if what == "the table":
                signal.raise_signal(signal.SIGTERM)

    @contextmanager
    def stack(_, *, tell):
        with up._unwinding_on(signal.SIGTERM):
            yield SimpleNamespace(supervisor=SimpleNamespace(wait=lambda: waited.append(1)))

    waited = []
    monkeypatch.setattr(up, "temporary_stack", stack)
    monkeypatch.setattr(up, "_listening", lambda *_: "the table")
    run(options(home), console=Slow(file=(out := io.StringIO())))
    assert out.getvalue().splitlines() == ["the table", "stopped at once"]
    assert not waited


def test_a_run_goes_on_when_nobody_listens_any_more(home, checkout):
    with run_elsewhere(home, checkout) as process:
        process.stdout.close()
        kill(by_command="-n cpu0@%h", of=process.pid)
        log = home / "logs" / "cpu0.log"
        until(lambda: log.read_text().count("it is ready.") == 2, within_s=BOUND_S)
        process.terminate()
        assert process.wait(BOUND_S) == 0


def test_a_run_that_is_killed_hard_leaves_no_process_and_no_lock(home, checkout, gone, told):
    with run_elsewhere(home, checkout) as process:
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) == 6  # valkey, cpu0 and beat, each with its warden
        process.kill()
        assert gone(family)
    assert running_stack_url(home) is None
    with temporary_stack(options(home), tell=told) as stack:
        stack.supervisor.wait_ready(within_s=BOUND_S)


def test_a_real_worker_and_its_redis_come_back_after_kill_9(home, checkout, told):
    shutil.rmtree(checkout / "celery")
    (checkout / "worker" / "__init__.py").touch()  # else an installed `worker` comes first
    (checkout / "worker" / "app.py").write_text(REAL)
    (checkout / "beat_schedule" / "__init__.py").write_text(REAL)
    others = psutil.Process().children(recursive=True)
    with temporary_stack(options(home), tell=told) as stack:
        told.until("cpu0 is ready")
        with redis.Redis.from_url(stack.url) as client:
            client.set("kept", 1)
            assert client.waitaof(1, 0, 10_000)[0] == 1  # a busy disk puts even the write off
        kill(by_command="-n cpu0@%h", spare=others)
        told.until("cpu0 was ended by signal 9")
        kill(by_command="valkey-server 127.0.0.1", spare=others)
        told.until("valkey was ended by signal 9")
        told.until("cpu0 is ready")
        with Celery(broker=stack.url, backend=stack.url) as app:
            assert app.send_task("double", (21,)).get(timeout=BOUND_S) == 42
            # What Celery keeps until its garbage is collected, and warns of then or not.
            app.backend.result_consumer.stop()
            app.backend.client.connection_pool.disconnect()
            app.pool.force_close_all()
        with redis.Redis.from_url(stack.url) as client:
            assert client.get("kept") == b"1"


def kill(*, by_command: str, of: int | None = None, spare: Sequence[psutil.Process] = ()) -> None:
    ours = (one for one in psutil.Process(of).children(recursive=True) if one not in spare)
    (one,) = (process for process in ours if by_command in " ".join(process.cmdline()))
    one.kill()
