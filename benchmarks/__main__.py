"""`python -m benchmarks NAME [--quick] [--device cpu] [--json]`: one line of JSON at the end.

With --json nothing else is printed to the standard output. The exit code is 0 whether or not a
goal was reached; 1 is for a benchmark that could not run.
"""

import argparse
import logging
import sys
from importlib import import_module

from .report import Options, Report

NAMES = ("bulk", "latency", "load", "mixed", "reference", "residency", "wire")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--quick", action="store_true", help="within a minute, noisier")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="only the line of JSON")
    given = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)

    benchmark = import_module(f"{__package__}.{given.name}")
    report: Report = benchmark.run(Options(quick=given.quick, device=given.device))
    if not given.json:
        for name, ratio in report.ratios.items():
            goal = report.goals.get(name)
            print(f"{name:40} {ratio:8.3g}" + (f"  (goal {goal:g})" if goal else ""))
    print(report.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
