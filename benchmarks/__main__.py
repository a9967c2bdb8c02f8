"""`python -m benchmarks NAME [--quick] [--device cpu] [--json] [--keep]`: one line of JSON.

With --json nothing else is printed to the standard output. The exit code is 0 whether or not a
goal was reached, and 1 where a call failed; what could measure nothing says why in its note, and is
not kept, nor is a quick run. `all` runs each in turn, also after one that failed; `report` draws
docs/performance.md from what was kept.
"""

import argparse
import logging
import re
import sys
from importlib import import_module

from api_client.wire.errors import ClipyardError

from . import kept, page
from .report import Options, Report

NAMES = (
    "bulk",
    "compressed",
    "gpu",
    "latency",
    "load-test",
    "load",
    "mixed",
    "peers",
    "reembed",
    "reference",
    "residency",
    "texts",
    "wire",
    "jobs",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=(*NAMES, "all", "report"))
    parser.add_argument("--quick", action="store_true", help="within a minute, noisier")
    parser.add_argument("--device", type=_device, default="cpu", help="cpu or cuda:N")
    parser.add_argument("--json", action="store_true", help="only the line of JSON")
    parser.add_argument("--keep", action="store_true", help="write the result to results/")
    given = parser.parse_args()
    if given.quick and given.keep:
        parser.error("a quick run is not kept, as the page would show it for the latest")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    if given.name == "report":
        print(*page.write(), sep="\n")
        return 0
    options = Options(quick=given.quick, device=given.device)
    failed = False
    for name in NAMES if given.name == "all" else [given.name]:
        try:
            _run(name, options, as_json=given.json, keep=given.keep)
        except ClipyardError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def _device(given: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", given):
        raise argparse.ArgumentTypeError(f"{given!r} is neither cpu nor cuda:N")
    return given


def _run(name: str, options: Options, *, as_json: bool, keep: bool) -> None:
    report = _report(name, options)
    if not as_json:
        for ratio_name, ratio in report.ratios.items():
            goal = report.goals.get(ratio_name)
            print(f"{ratio_name:40} {ratio:8.3g}" + (f"  (goal {goal:g})" if goal else ""))
    print(report.line(), flush=True)
    if keep and report.ratios:  # else it would be the newest
        kept.keep(report.line())


def _report(name: str, options: Options) -> Report:
    import torch

    wanted = torch.device(options.device)
    if wanted.type == "cuda":
        index = wanted.index or 0
        if index >= torch.cuda.device_count():
            return Report(name, seconds=0.0, note=f"nothing measured: {options.device} is not here")
        torch.cuda.set_device(index)
    report: Report = import_module(f"{__package__}.{name.replace('-', '_')}").run(options)
    return report


if __name__ == "__main__":
    sys.exit(main())
