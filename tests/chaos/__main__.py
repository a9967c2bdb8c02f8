"""python -m tests.chaos --faults N --items M --seed S"""

import argparse
import json
import signal
import sys
from pathlib import Path

from tests import reliability

from . import plan, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="fake/vision", choices=("fake/vision", run.REAL))
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--gap-s", type=float, default=2.4, help="between two faults, on average")
    parser.add_argument("--longest-s", type=float, default=60.0, help="that a fault lasts")
    parser.add_argument("--visibility-s", type=float, default=120.0)
    parser.add_argument("--job-items", type=int, default=5000, help="of each job")
    parser.add_argument("--keep-logs", type=Path, help="the workers' logs go there")
    parser.add_argument("--keep", action="store_true", help="in docs/reliability")
    parser.add_argument("--plan", action="store_true", help="print the faults, and do nothing")
    given = vars(parser.parse_args())
    only_plan, keep = given.pop("plan"), given.pop("keep")
    options = run.Options(**given)
    if only_plan:
        names = [f"cpu{n}" for n in range(options.workers)]
        for fault in plan.draw(
            options.seed,
            options.faults,
            workers=names,
            gap_s=options.gap_s,
            longest_s=options.longest_s,
        ):
            print(fault)
        return 0
    report = run.run(options, tell=lambda line: print(line, file=sys.stderr))
    if keep:
        family = options.model.partition("/")[0]
        reliability.keep(f"chaos-{family}", json.loads(report.line()))
    print(report.line())
    return not report.ok


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # with everything it started
    sys.exit(main())
