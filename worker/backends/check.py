"""A kit that tries what the slots and the batcher rely on: `python -m worker.backends.check NAME`.

It is a pytest plug-in too. With `pytest -p worker.backends.check`, or in a module that imports
`pytest_generate_tests` from here, a test with the argument `clipyard_check` runs once per check:

    def test_it_keeps_the_contract(clipyard_check):
        clipyard_check(Subject(SimpleBackend(Mine, placement), Entry("mine/one"), placement))
"""

import sys
import time
import traceback
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api_client.wire.errors import BackendFailed, ClipyardError, UnknownModel

from ..catalogue import Catalogue, Entry
from ..settings import WorkerSettings
from .contract import CHECKS, Subject
from .registry import Families

__all__ = ["CHECKS", "Finding", "Subject", "examine"]

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Finding:
    """What came of one check; `trouble` is empty when it passed."""

    check: str
    trouble: str
    seconds: float


def examine(subject: Subject) -> Iterator[Finding]:
    """Every check, one after the other, whatever the ones before found."""
    return (_examined(check, subject) for check in CHECKS)


def pytest_generate_tests(metafunc: Any) -> None:
    """Pytest's hook: one test per check."""
    if "clipyard_check" in metafunc.fixturenames:
        ids = [check.__name__ for check in CHECKS]
        metafunc.parametrize("clipyard_check", CHECKS, ids=ids)


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every check passed, 1 if not, 2 if there is nothing to check."""
    parser = ArgumentParser(
        prog="python -m worker.backends.check",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="a family, or the id of a model of it")
    name = parser.parse_args(argv).name
    try:
        subject = _subject(name, WorkerSettings.read())
    except ClipyardError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{subject.entry.backend} with {subject.entry.id} on {subject.placement.device}")
    passed = True
    for check in CHECKS:
        print(f"  {check.__name__:20}", end=" ", flush=True)  # for one that hangs
        finding = _examined(check, subject)
        passed = passed and not finding.trouble
        print(f"{finding.seconds:6.2f} s  {finding.trouble or 'passed'}")
    return 0 if passed else 1


def _examined(check: Callable[[Subject], None], subject: Subject) -> Finding:
    begun, trouble = time.monotonic(), ""
    try:
        check(subject)
    except AssertionError as error:
        trouble = str(error) or "an assertion of the back end failed"
    except Exception as error:
        trouble = f"{type(error).__name__}: {error}{_place(error)}"
    return Finding(check.__name__, trouble, time.monotonic() - begun)


def _place(error: BaseException) -> str:
    """Which line of the family led to it; an error of ours is told by its sentence."""
    if isinstance(error, ClipyardError):
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    are_ours = [Path(frame.filename).is_relative_to(ROOT) for frame in frames]
    last_of_ours = len(frames) - 1 - are_ours[::-1].index(True)
    frame = frames[min(last_of_ours + 1, len(frames) - 1)]
    return f" ({frame.filename}:{frame.lineno})"


def _subject(name: str, settings: WorkerSettings) -> Subject:
    """
    Raises:
        ClipyardError: no such family or model, or none of the family's can be loaded here.
    """
    from .placement import resolve  # torch: only where something is to be run

    placement = resolve(settings)
    families = Families(placement, settings.backends)
    catalogue = families.catalogue(settings.catalogue, Entry("fake/check", backend="fake"))
    if name in families:
        return Subject(families[name], _loadable(name, families, catalogue), placement)
    try:
        entry = catalogue[name]
    except UnknownModel as error:
        raise UnknownModel(
            f"{error}; the families are {', '.join(families)}, and CLIPYARD_BACKENDS names others"
        ) from None
    return Subject(families[entry.backend], entry, placement)


def _loadable(name: str, families: Families, catalogue: Catalogue) -> Entry:
    refusals = []
    for entry in catalogue:
        if entry.backend == name:
            try:
                families.check(entry)
                return entry
            except BackendFailed as error:  # in the place of what nobody typed
                refusals.append(f"{error}{_place(error.__cause__ or error)}")
            except ClipyardError as error:
                refusals.append(str(error))
            except Exception as error:
                refusals.append(f"{type(error).__name__}: {error}{_place(error)}")
    if refusals:
        raise BackendFailed(f"no model of {name} can be loaded here: {refusals[0]}")
    raise UnknownModel(
        f"{name} brings no `models` and no catalogue lists one; give a model's id instead"
    )


if __name__ == "__main__":
    sys.exit(main())
