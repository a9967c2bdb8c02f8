"""What a job leaves for people and programs: report.json, and report.html with the rate."""

import html
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from api_client.wire.jobs import JobState, JobStatus

from .check import Findings
from .neighbours import Moved
from .papers import Papers

BINS = 120
WIDTH, HEIGHT = 720, 180  # of the plot, in pixels


def write(
    papers: Papers, status: JobStatus, found: Findings, *, state: JobState, moved: Moved | None
) -> None:
    """Both reports, into the job's folder."""
    told = summary(status, found, state=state, moved=moved)
    papers.report("report.json", lambda out: out.write(json.dumps(told, indent=2).encode()))
    papers.report("report.html", lambda out: out.write(page(told).encode()))


def summary(
    status: JobStatus, found: Findings, *, state: JobState, moved: Moved | None
) -> dict[str, Any]:
    """Everything that the reports say, as JSON values."""
    # Submitted again after Redis was lost, a job has chunks that were finished before it started.
    begun = min([status.started_at, *(at for at, _ in found.pace)])
    ended = max((at for at, _ in found.pace), default=status.seen_at)
    seconds = max(ended - begun, 1e-3)
    return {
        "job": status.id,
        "state": str(state),
        "model": status.spec.model,
        "fingerprint": status.fingerprint,
        "dimension": status.dimension,
        "source": status.spec.source.model_dump(),
        "sink": status.spec.sink.model_dump(),
        "items": status.items,
        "vectors": found.done,
        "failures": found.failed,
        "failure_codes": dict(found.codes.most_common()),
        "cut_texts": found.cut,
        "failed_items": [
            {"id": loss.id, "code": loss.code, "message": loss.message} for loss in found.losses
        ],
        "missing": status.items - found.done - found.failed,
        "missing_ids": found.missing,
        "seconds": round(seconds, 3),
        "items_per_s": round((found.done + found.failed) / seconds, 1),
        "stages_s": {
            name: round(getattr(status, name), 3)
            for name in ("read_s", "decode_s", "forward_s", "write_s")
        },
        "workers": status.workers,
        "rate": rate(found.pace, begun=begun),
        "moved": asdict(moved) if moved else None,
    }


def rate(pace: Sequence[tuple[float, int]], *, begun: float) -> list[tuple[float, float]]:
    """(seconds since the start, items per second), a point for each of at most `BINS` bins."""
    ended = max((at for at, _ in pace), default=begun)
    step = max((ended - begun) / BINS, 1.0)
    bins: Counter[int] = Counter()
    for at, items in pace:
        bins[max(0, int((at - begun) / step))] += items
    return [
        (round((i + 0.5) * step, 2), round(bins[i] / step, 2))
        for i in range(max(bins, default=-1) + 1)
    ]


def page(told: dict[str, Any]) -> str:
    """One file, without scripts or anything to fetch."""
    proof = (
        "Every item is a vector in the sink or a recorded failure."
        if not told["missing"]
        else f"{told['missing']} items are neither in the sink nor recorded as failures."
    )
    rows = [
        ("items", told["items"]),
        ("vectors", told["vectors"]),
        ("failures", f"{told['failures']} {told['failure_codes'] or ''}"),
        ("longer than the model reads", f"{told['cut_texts']} texts, which were cut"),
        ("missing", f"{told['missing']} {', '.join(told['missing_ids'][:10])}"),
        ("model", f"{told['model']}, {told['dimension']} numbers, {told['fingerprint']}"),
        ("from", f"{told['source']['kind']}: {told['source']['where']}"),
        ("to", f"{told['sink']['kind']}: {told['sink']['where']}"),
        ("time", f"{told['seconds']} s, {told['items_per_s']} items/s"),
        ("stages, summed over chunks", told["stages_s"]),
        ("workers", told["workers"]),
    ]
    sheet = ""
    if moved := told["moved"]:
        kept = f"{moved['overlap_at_10']:.1%} of the ten nearest, over {moved['sample']} items"
        rows.append(("neighbours kept", kept))
        sheet = '<h2>What moved most</h2><img src="moved.png">'
    return PAGE.format(
        job=html.escape(told["job"]),
        state=html.escape(told["state"]),
        proof=html.escape(proof),
        table=table(rows),
        failed=failed(told),
        plot=plot(told["rate"]),
        sheet=sheet,
    )


def table(rows: Iterable[tuple[str, object]]) -> str:
    """A row for each pair of a name and what is to be told of it."""
    cells = (
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return f"<table>{''.join(cells)}</table>"


def failed(told: dict[str, Any]) -> str:
    """What failed, and why, as far as the findings tell; empty if nothing did."""
    items, count = told["failed_items"], told["failures"]
    if not items:
        return ""
    of = "" if len(items) == count else f": the first {len(items)} of {count}"
    rows = ((item["code"], f"{item['id']}: {item['message']}") for item in items)
    return f"<h2>What failed{of}</h2>\n{table(rows)}"


def plot(points: Sequence[tuple[float, float]]) -> str:
    """The rate over time, as SVG: sharp at any size, and text for whoever reads the source."""
    if not points:
        return ""
    longest, highest = points[-1][0] or 1.0, max(y for _, y in points) or 1.0
    line = " ".join(
        f"{x / longest * WIDTH:.1f},{HEIGHT - y / highest * HEIGHT:.1f}" for x, y in points
    )
    return (
        f'<svg viewBox="-60 -20 {WIDTH + 80} {HEIGHT + 50}" role="img" aria-label="rate over time">'
        f'<path d="M0,0V{HEIGHT}H{WIDTH}" fill="none" stroke="#888"/>'
        f'<polyline points="0,{HEIGHT} {line} {WIDTH},{HEIGHT}" fill="#cfe3ff" stroke="#06c"/>'
        f'<text x="-6" y="6" text-anchor="end">{highest:g}</text>'
        f'<text x="-6" y="{HEIGHT}" text-anchor="end">0</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 20}" text-anchor="end">{longest:g} s</text></svg>'
    )


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Job {job}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; }}
th {{ text-align: left; padding-right: 1.5rem; vertical-align: top; white-space: nowrap; }}
td {{ overflow-wrap: anywhere; }}
svg {{ width: 100%; font-size: 12px; }} img {{ max-width: 100%; }}
</style>
<h1>Job {job}: {state}</h1>
<p>{proof}</p>
{table}
{failed}
<h2>Items per second</h2>
{plot}
{sheet}
</html>
"""
