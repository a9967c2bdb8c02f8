"""The worker of the kill matrix: the project's broker, transport, consumer and pool, and tasks that
can wait.

celery -A matrix_app worker -P threads
"""

import os
import time
from pathlib import Path

from celery.concurrency import ALIASES
from celery.worker.control import control_command

from api_client.wire.broker import celery_app
from api_client.wire.settings import Settings
from worker.delivery import transport
from worker.delivery.pool import stop_if_cancelled

FOLDER = Path(os.environ["MATRIX_FOLDER"])

ALIASES["threads"] = "worker.delivery.pool:TaskPool"
transport.use()
app = celery_app(
    Settings.read(),
    worker_consumer="worker.delivery.consumer:Consumer",
    worker_pool="worker.delivery.pool:TaskPool",
    worker_enable_prefetch_count_reduction=False,
)
app.conf.broker_transport_options |= {
    "visibility_timeout": float(os.environ["MATRIX_VISIBILITY_TIMEOUT_S"]),
    "unacked_restore_interval": 0.5,
}

app.Task.Request = "worker.delivery.consumer:Request"


@app.task(name="cramped")
def cramped() -> None:
    raise MemoryError("no room")


@app.task(name="hold")
def hold(name: str) -> None:
    """Run until the file `open` exists; what happens goes to a file, which outlives any Redis."""
    note(f"start {name}")
    while not (FOLDER / "open").exists():
        stop_if_cancelled()
        time.sleep(0.02)
    note(f"end {name}")


@control_command(name="dawdle")
def dawdle(state: object) -> str:
    """Holds the event loop until the file `open` exists, and then answers."""
    note("start dawdle")
    while not (FOLDER / "open").exists():
        time.sleep(0.02)
    return "done"


def note(line: str) -> None:
    with (FOLDER / "journal").open("a") as journal:
        journal.write(f"{line}\n")
