"""A job's progress on a terminal."""

import time
from collections import deque
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from ..wire.jobs import JobState, JobStatus
from ..wire.logs import ESCAPES
from .job import LOOK_S, Job

RATE_OVER = 600  # looks, five minutes: a chunk of large pictures takes a good part of one


def watch(job: Job) -> JobStatus:
    """Draw until the job is over or has paused; gives how it stands then."""
    seen: deque[JobStatus] = deque(maxlen=RATE_OVER)
    console = Console(stderr=True)
    try:
        with Live(console=console, refresh_per_second=4) as live:
            for status in _looks(job):
                if seen and _begins_anew(seen[-1], status):
                    seen.clear()
                seen.append(status)
                live.update(Group(*drawn(status, rate=rate(seen))))
    finally:
        if seen and not console.is_terminal:
            console.line()  # in a file the last line has no end, and what went wrong follows it
    return status


def _looks(job: Job) -> Iterator[JobStatus]:
    while True:
        yield (status := job.status())
        if status.state.is_at_rest:
            return
        time.sleep(LOOK_S)


def drawn(status: JobStatus, *, rate: float) -> list[Padding | Text]:
    """A bar, and below it what people ask for."""
    left = 0 if status.state.is_at_rest else status.items - finished(status)
    lines = [
        f"{status.state}  {finished(status)}/{status.items}  failed {status.failed}  "
        f"{_pace(left, rate)}",
        f"stages  {stages(status)}",
        f"workers  {', '.join(f'{name} {items}' for name, items in status.workers.items())}",
    ]
    if status.cut:
        lines.append(f"longer than the model reads, and cut: {status.cut} of {status.items}")
    if status.failed and status.state in (JobState.COMPLETE, JobState.INCOMPLETE):
        lines.append(f"what failed, and why: {status.papers}/report.html")
    if told := status.reason or status.trouble:
        lines.append(told)
    bar = ProgressBar(total=status.items or 1, completed=finished(status), width=60)
    # Padded, for a bar by itself does not end its line; and what others named is shown here.
    return [Padding(bar, expand=False), *(Text(line.translate(ESCAPES)) for line in lines)]


def _begins_anew(before: JobStatus, now: JobStatus) -> bool:
    """A listing of minutes says nothing of the rate, nor do chunks that are done again."""
    return before.state is JobState.PLANNING or finished(now) < finished(before)


def rate(seen: "deque[JobStatus]") -> float:
    """Items per second between the first and the last look."""
    first, last = seen[0], seen[-1]
    seconds = last.seen_at - first.seen_at
    return (finished(last) - finished(first)) / seconds if seconds > 0 else 0.0


def finished(status: JobStatus) -> int:
    """Items that are done or failed; fewer than before when chunks are to be done again."""
    return status.done + status.failed


def stages(status: JobStatus) -> str:
    """The time of each stage, summed over chunks, and its share."""
    spent = {
        "read": status.read_s,
        "decode": status.decode_s,
        "forward": status.forward_s,
        "write": status.write_s,
    }
    total = sum(spent.values()) or 1.0
    return "  ".join(
        f"{name} {_spent(seconds)} {seconds / total:.0%}" for name, seconds in spent.items()
    )


def _spent(seconds: float) -> str:
    """Four digits at most: all stages stand in one line."""
    return f"{seconds:.0f} s" if seconds < 10_000 else f"{seconds / 3600:.0f} h"


def _pace(left: int, rate: float) -> str:
    """The rate and the time left; nothing of either before a chunk was seen to end."""
    if rate <= 0:
        return ""
    told = f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s"
    minutes, seconds = divmod(int(left / rate), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{told}  about {hours}:{minutes:02}:{seconds:02} left" if left > 0 else told
