import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from api_client.stack.child import Child, Running
from api_client.stack.errors import CrashLoop, NotReady, StackError
from api_client.stack.supervisor import Patience, Supervisor
from api_client.wire.errors import BadSettings
from tests.flow.processes import until

WAITS = "import signal; print('here', flush=True); signal.pause()"
DIES = "import sys; sys.exit('no such model')"
IGNORES = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('here', flush=True)\nwhile True: signal.pause()"
)
FOLLOWS = """
import pathlib, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("here", flush=True)
signal.sigwait([signal.SIGTERM])
pathlib.Path({mine!r}).touch()
while not pathlib.Path({other!r}).exists(): time.sleep(0.01)
print("bye")
"""
BOUND_S = 20.0
pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")
BRISK = Patience(deaths=3, within_s=60, first_delay_s=0.01)


def python(name: str, program: str, **rest) -> Child:
    argv = (sys.executable, "-S", "-c", program)
    return Child(name=name, argv=argv, cwd=Path(), ready=lambda said: "here" in said, **rest)


def kill_who_waits(by: int = signal.SIGKILL) -> None:
    family = psutil.Process().children(recursive=True)
    (child,) = (one for one in family if "signal.pause" in one.cmdline()[-1])
    child.send_signal(by)


def test_the_delay_doubles_up_to_a_limit_and_then_patience_ends():
    patience = Patience(deaths=5, first_delay_s=1, longest_delay_s=3)
    assert [patience.delay_s(deaths) for deaths in (1, 2, 3, 4, 5)] == [1, 2, 3, 3, None]


def test_deaths_of_long_ago_are_forgiven():
    assert Patience(within_s=60).recent([0.0, 50.0, 100.0], now=100.0) == [50.0, 100.0]


def test_a_killed_child_is_started_again(tmp_path, told):
    with Supervisor([python("it", WAITS)], logs=tmp_path, tell=told, patience=BRISK) as supervisor:
        supervisor.wait_ready(within_s=BOUND_S)
        told.until("it is ready")
        kill_who_waits()
        assert told.until("was ended") == "it was ended by signal 9; it starts again in 0.01 s"
        told.until("it is ready")


def test_logs_that_were_removed_end_nothing(tmp_path, told):
    logs = tmp_path / "logs"
    with Supervisor([python("it", WAITS)], logs=logs, tell=told, patience=BRISK) as supervisor:
        supervisor.wait_ready(within_s=BOUND_S)
        told.until("it is ready")
        shutil.rmtree(logs)
        kill_who_waits()
        told.until("it is ready")
        assert "here" in (logs / "it.log").read_text()
        assert logs.stat().st_mode & 0o077 == 0


def test_a_crash_loop_ends_everything_and_shows_the_end_of_the_log(tmp_path, told):
    children = [python("calm", WAITS), python("broken", DIES)]
    with (
        pytest.raises(CrashLoop, match=r"(?s)broken exited with code 1, 3 times.*no such model"),
        Supervisor(children, logs=tmp_path, tell=told, patience=BRISK) as supervisor,
    ):
        supervisor.wait()


def test_a_child_that_cannot_start_as_it_is_set_up_is_not_tried_again(tmp_path, told):
    unusable = python("unusable", "import sys; print('no such device'); sys.exit(2)")
    with (
        pytest.raises(BadSettings, match=r"(?s)unusable exited with code 2: .*no such device"),
        Supervisor([unusable], logs=tmp_path, tell=told, patience=BRISK) as supervisor,
    ):
        supervisor.wait()
    assert (tmp_path / "unusable.log").read_text().count("no such device") == 1


def test_a_child_that_was_ready_is_started_again_however_often_it_dies(tmp_path, told):
    ends = "import signal, sys; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(2))"
    brief = python("brief", f"{ends}; {WAITS}")
    brisk = Patience(deaths=3, first_delay_s=0.01, longest_delay_s=0.02)
    with Supervisor([brief], logs=tmp_path, tell=told, patience=brisk):
        for _ in range(4):
            told.until("brief is ready")
            kill_who_waits(signal.SIGUSR1)
            told.until("it starts again")


def test_all_are_asked_to_end_before_one_is_waited_for(tmp_path, told):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    children = [
        python(name, FOLLOWS.format(mine=mine, other=other), grace_s=10)
        for name, mine, other in (("one", a, b), ("two", b, a))
    ]
    with Supervisor(children, logs=tmp_path, tell=told) as supervisor:
        supervisor.wait_ready(within_s=BOUND_S)
    for child in children:
        assert (tmp_path / f"{child.name}.log").read_text().endswith("bye\n")


def fail_when_it_ended(supervisor: Supervisor) -> None:
    with suppress(CrashLoop):
        supervisor.wait()
    raise ConnectionError("the server is away")


def test_a_crash_loop_is_the_reason_given_for_what_fails_because_of_it(tmp_path, told):
    with (
        pytest.raises(CrashLoop) as raised,
        Supervisor([python("it", DIES)], logs=tmp_path, tell=told, patience=BRISK) as supervisor,
    ):
        fail_when_it_ended(supervisor)
    assert isinstance(raised.value.__cause__, ConnectionError)


def test_a_program_that_is_not_there_is_reported(tmp_path, told):
    nothing = Child(name="it", argv=("/no/such/program",), cwd=Path())
    with (
        pytest.raises(StackError, match="/no/such/program"),
        Supervisor([nothing], logs=tmp_path, tell=told) as supervisor,
    ):
        supervisor.wait()


def test_a_child_that_does_not_become_ready_is_named(tmp_path, told):
    silent = python("silent", "import signal; signal.pause()")
    with (
        pytest.raises(NotReady, match="silent is not ready"),
        Supervisor([silent], logs=tmp_path, tell=told) as supervisor,
    ):
        supervisor.wait_ready(within_s=0.1)


def test_the_foundation_ends_after_the_others(tmp_path, told):
    order = tmp_path / "order"
    says_when = (
        "import signal, sys\n"
        f"def end(*_): open({str(order)!r}, 'a').write(sys.argv[1] + ' '); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); print('here', flush=True); signal.pause()"
    )
    floor, upper = (python(name, says_when) for name in ("floor", "upper"))
    floor, upper = (
        Child(name=one.name, argv=(*one.argv, one.name), cwd=one.cwd, ready=one.ready)
        for one in (floor, upper)
    )
    foundation = Running(floor, log=tmp_path / "floor.log")
    with Supervisor([upper], logs=tmp_path, tell=told, foundation=foundation):
        told.until("floor is ready")
        told.until("upper is ready")
    assert order.read_text().split() == ["upper", "floor"]


def test_a_child_that_ignores_the_stop_signal_is_killed_after_its_grace(tmp_path, told):
    deaf = python("deaf", IGNORES, grace_s=0.1)
    with Supervisor([deaf], logs=tmp_path, tell=told) as supervisor:
        supervisor.wait_ready(within_s=BOUND_S)


def test_a_child_is_asked_to_end_once(tmp_path):
    """Twice means "at once" to many programs, such as Celery."""
    slow = python(
        "slow",
        "import signal, sys, time\n"
        "def end(*_): print('asked', flush=True); time.sleep(0.2); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); print('here', flush=True); signal.pause()",
    )
    running = Running(slow, log=tmp_path / "slow.log")
    until(lambda: "here" in running.said())
    running.ask_to_end()
    until(lambda: "asked" in running.said())
    running.end()
    assert running.said().count("asked") == 1


def test_a_second_interrupt_ends_every_grace(tmp_path, told):
    supervisor = Supervisor([python("deaf", IGNORES, grace_s=3600)], logs=tmp_path, tell=told)

    def interrupt_twice() -> None:
        told.until("deaf is ready")
        os.kill(os.getpid(), signal.SIGINT)
        until(supervisor._stop.is_set)  # the first is taken before the second counts as one
        os.kill(os.getpid(), signal.SIGINT)

    impatient = threading.Thread(target=interrupt_twice)
    impatient.start()
    with pytest.raises(KeyboardInterrupt), supervisor:
        supervisor.wait()
    impatient.join()


def test_an_interrupt_that_another_thread_receives_is_taken(tmp_path, told):
    def interrupt_here() -> None:
        told.until("it is ready")
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    threading.Thread(target=interrupt_here).start()
    with (
        pytest.raises(KeyboardInterrupt),
        Supervisor([python("it", WAITS)], logs=tmp_path, tell=told) as supervisor,
    ):
        supervisor.wait()


def test_what_a_child_started_ends_with_it(tmp_path, gone):
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {IGNORES!r}])"
    others = psutil.Process().children(recursive=True)
    parent = Running(python("parent", program), log=tmp_path / "parent.log")
    while "here" not in parent.said():
        time.sleep(0.01)
    family = [one for one in psutil.Process().children(recursive=True) if one not in others]
    parent.end()
    assert gone(family)


def test_a_supervisor_that_is_killed_hard_leaves_no_process(tmp_path, gone):
    program = f"""
import sys
from pathlib import Path
from api_client.stack.child import Child
from api_client.stack.supervisor import Supervisor
deaf = Child(name="deaf", argv=(sys.executable, "-c", {IGNORES!r}), cwd=Path(),
             ready=lambda said: "here" in said)
with Supervisor([deaf], logs=Path({str(tmp_path)!r}), tell=lambda line: None) as supervisor:
    supervisor.wait_ready(within_s={BOUND_S})
    print("up", flush=True)
    supervisor.wait()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout.readline() == b"up\n"
        family = psutil.Process(supervisor.pid).children(recursive=True)
        assert len(family) == 2  # the child and its warden
        supervisor.kill()
        assert gone(family)
