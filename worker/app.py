"""The Celery app of the worker, and what happens when its process starts and ends.

celery -A worker.app worker -P threads
"""

import atexit
import ctypes
import gc
import logging
import os
import sys
import threading
import warnings
from typing import Any

from celery import concurrency
from celery.app import trace
from celery.bootsteps import StartStopStep
from celery.exceptions import CPendingDeprecationWarning
from celery.signals import (
    celeryd_after_setup,
    celeryd_init,
    setup_logging,
    worker_ready,
    worker_shutdown,
)

from api_client.wire import logs, spans
from api_client.wire.broker import celery_app, check_server
from api_client.wire.errors import BadSettings, ClipyardError
from api_client.wire.settings import cannot_start

from . import runtime
from .assembly import build
from .delivery import pool, routine, transport
from .settings import WorkerSettings
from .showcase import Showcase

log = logging.getLogger(__name__)

# By name: Celery imports the tasks when the worker starts, and they import the runtime.
TASK_MODULES = ["tasks.embed", "tasks.lifecycle", "tasks.sweep", "tasks.reembed"]

# At work at once, beside bulk; mostly they wait for the batcher to join them. On a CPU with two
# cores these are four batches: one for each runner, and one more to be made ready meanwhile.
INTERACTIVE_TASKS = 64

# OpenMP reads these when torch is imported, which is later than now. A thread has torch's work to
# itself unless `backends.cores` gives it more. Those that share an operation spin for a fraction
# of a millisecond before they sleep: enough to bridge the gap to the next operation, too short to
# take the cores that the decoders need.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "8000")

# glibc deals its threads up to eight heaps a core, and none finds what is free in another. Two for
# all bound what lies free here and there.
M_ARENA_MAX, HEAPS = -8, 2
if sys.platform == "linux":
    getattr(ctypes.CDLL(None), "mallopt", max)(M_ARENA_MAX, HEAPS)  # musl has none

concurrency.ALIASES["threads"] = "worker.delivery.pool:TaskPool"  # what `-P threads` means here
transport.use()

# What goes back to its queue has a line of ours where that is worth a warning, and no traceback.
trace.log_policy_reject = trace.log_policy_reject._replace(severity=logging.INFO, traceback=0)


class Farewell(StartStopStep):  # type: ignore[misc]  # celery has no types
    """Before the pool is waited for, which takes as long as what it works on."""

    def close(self, worker: Any) -> None:
        runtime.here().say_farewell()


try:
    settings = WorkerSettings.read()
    app = celery_app(
        settings,
        include=TASK_MODULES,
        worker_pool="worker.delivery.pool:TaskPool",
        worker_consumer="worker.delivery.consumer:Consumer",
        worker_concurrency=pool.BULK_TASKS + INTERACTIVE_TASKS,
        worker_enable_prefetch_count_reduction=False,
        worker_send_task_events=settings.task_events,
    )
    app.backend_cls = f"worker.delivery.results:Backend+{app.backend_cls}"
    app.steps["worker"].add(Farewell)
    app.steps["consumer"].add(Showcase)
    app.Task.Request = "worker.delivery.consumer:Request"
except ClipyardError as error:
    cannot_start(error)  # one line a mistake, and no traceback above it


# A message over which our pool would have to grow is lost; a beat within a worker has no schedule.
NOT_FOR_US = {"autoscale": "leave it out", "beat": "start `celery -A beat_schedule beat` instead"}


@celeryd_init.connect  # type: ignore[untyped-decorator]
def _refuse(options: dict[str, Any], **_: Any) -> None:
    for option, mend in NOT_FOR_US.items():
        if options.get(option):
            cannot_start(BadSettings(f"--{option} is not for these workers: {mend}"))


@setup_logging.connect  # type: ignore[untyped-decorator]
def _log(loglevel: int | None = None, **_: Any) -> None:
    """In Celery's place. Its `-l` counts where our own setting is not set."""
    ours = settings
    if loglevel and settings.origin("log_level") == "default":
        ours = settings.model_copy(update={"log_level": logging.getLevelName(loglevel)})
    try:
        logs.set_up(ours)
    except ClipyardError as error:  # Celery would go on, without any log
        cannot_start(error)
    for name in routine.LOGGERS:
        logging.getLogger(name).addFilter(routine.is_worth_a_line)
    log.setLevel(logging.INFO)  # whoever waits for "ready." waits whatever the level is


@celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def _start(sender: str, **_: Any) -> None:
    # Of a lost connection Celery says that what runs is redelivered. Our Consumer keeps it.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    gc.disable()
    try:
        check_server(settings)
        spans.set_up(settings, service="clipyard-worker", instance=sender)
        runtime.use(build(settings, node=sender))
        transport.Channel.stands_back = runtime.here().stands_back
    except ClipyardError as error:
        cannot_start(error)
    except Exception:  # Celery would log it and go on without a runtime
        log.exception("the worker cannot start")
        sys.exit(1)
    # What is here now stays: half a million objects, most of them torch's. Each full collection
    # would hold all threads up for a quarter of a second to look at them; those while torch is
    # imported make the start a second longer.
    gc.freeze()
    gc.enable()
    atexit.register(_thaw)
    worker_shutdown.connect(_stop)  # Celery sends it where a start has failed, too


def _thaw() -> None:
    """Triton takes what is frozen for a leak and says so, line by line. Without it what is frozen
    goes with the process, and nobody looks at it for a second first."""
    if "triton" in sys.modules:
        gc.unfreeze()


@worker_ready.connect  # type: ignore[untyped-decorator]
def _ready(sender: Any, **_: Any) -> None:
    log.info("%s is ready.", sender.hostname)
    runtime.here().watchdog.start(sender.give_back)
    threading.Thread(target=runtime.here().warm_up, name="warm-up", daemon=True).start()


def _stop(**_: Any) -> None:
    runtime.here().close()
    runtime.use(None)
