"""The fleet on a terminal: workers, models, the last events; once, or live."""

import time
from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .show import coloured, console, grid
from .status import Fleet, Worker, step_down
from .story import span
from .vigil import NOBODY
from .wire import names
from .wire.messages import ModelStatus

REFRESH_S = 1.0
EVENTS_SHOWN = 8
STYLES = {"ready": "green", "starting": "yellow", "stopping": "yellow", "broken": "red"}
PRESSURE_STYLES = {"normal": "green", "elevated": "yellow", "high": "red", "critical": "bold red"}
MB = 1_000_000


def show(fleet: Fleet) -> None:
    """Print it once."""
    console().print(drawn(fleet))


def can_watch() -> bool:
    """Whether there is a terminal to draw on, as far as TERM and TTY_COMPATIBLE tell."""
    terminal = console()
    return terminal.is_terminal and not terminal.is_dumb_terminal


def watch(look: Callable[[], Fleet]) -> None:
    """Show it until Ctrl-C."""
    with Live(drawn(look()), console=console(), screen=True) as live:
        while True:
            time.sleep(REFRESH_S)
            live.update(drawn(look()))


def drawn(fleet: Fleet) -> RenderableType:
    """Workers, their models in LRU order, and the newest events, as far as there are any."""
    strange = (coloured(told, "red") for told in fleet.strange)
    if not fleet.workers:
        return Group(Text(NOBODY, style="red"), *strange)
    tables = (_workers(fleet), _models(fleet), _events(fleet))
    return Group(*(table for table in tables if table.row_count), *strange)


def _workers(fleet: Fleet) -> Table:
    columns = ("worker", "device", "state", "memory", "pressure", "waiting", "last sweep")
    table = grid(*columns, title=f"current model: {fleet.current or 'none'}")
    for worker in fleet.workers:
        queues = (names.EMBED, names.CONTROL, names.direct_queue(worker.name))
        waiting = [fleet.depths[queue] for queue in queues if queue in fleet.depths]
        table.add_row(
            worker.name,
            worker.device,
            coloured(f"{worker.state} {worker.trouble}".strip(), STYLES[worker.state]),
            _memory(worker),
            Text(worker.pressure, style=PRESSURE_STYLES[worker.pressure]),
            str(sum(depth.interactive + depth.bulk for depth in waiting)),
            _ago(worker.beat_at - worker.last_sweep_at) if worker.last_sweep_at else "never",
        )
    return table


def _models(fleet: Fleet) -> Table:
    head = "worker\nmodel"
    table = grid(head, "tier\nnext", "leases\nuses", "MB", "idle\nsteps down", unbroken=head)
    for worker in fleet.workers:
        for model in worker.held:
            idle = _ago(worker.beat_at - model.last_used)
            table.add_row(
                f"{worker.name}\n{model.id}",
                f"{model.state}\n{'out' if model.next_out else ''}",
                f"{model.leases}\n{model.usage_count}",
                f"{(model.device_bytes + model.host_bytes) / MB:.0f}",
                f"{idle}\n{_steps_down(worker, model)}",
            )
    return table


def _events(fleet: Fleet) -> Table:
    table = grid("when", "worker", "what", "model", "why", "by")
    for event in fleet.events[:EVENTS_SHOWN]:
        when = time.strftime("%H:%M:%S", time.localtime(event.at))
        row = (when, event.worker, event.kind.value, event.model, event.reason, event.asked_by)
        table.add_row(*row)
    return table


def _steps_down(worker: Worker, model: ModelStatus) -> str:
    if model.pinned:
        return "pinned"
    step = step_down(worker, model)
    return f"in {span(step.at - worker.beat_at)}" if step else ""


def _memory(worker: Worker) -> str:
    total, free = worker.host_total, worker.host_free
    if worker.device_total:
        total, free = worker.device_total, worker.device_free
    return f"{(total - free) / MB / 1000:.1f} of {total / MB / 1000:.1f} GB"


def _ago(seconds: float) -> str:
    return f"{span(seconds)} ago" if seconds >= 1 else "now"
