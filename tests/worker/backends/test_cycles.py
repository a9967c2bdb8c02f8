"""Models that come and go for a long time leave host memory as it was."""

import psutil
import pytest

from worker.backends.base import Placement
from worker.backends.registry import Families
from worker.catalogue import BUILT_IN, Catalogue
from worker.residency.ledger import Ledger
from worker.residency.slots import Limits, Slots

WARM_UP, CYCLES = 20, 80


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_many_loads_leave_host_memory_where_it_was(tmp_path, precision):
    families = Families(Placement(precision=precision, cache_dir=tmp_path, offline=True))
    entry = Catalogue.read(BUILT_IN)["shapes/demo"]
    slots = Slots(
        check=families.check, load=families.load, limits=Limits(), ledger=Ledger(), unified=True
    )
    process = psutil.Process()
    for cycle in range(CYCLES):
        with slots.lease(entry) as model:
            model.prepare_text("a red circle")
        assert slots.unload(entry.id, reason="the test goes on", wait_s=1)
        if cycle == WARM_UP:
            before = process.memory_info().rss
    assert process.memory_info().rss <= 1.02 * before  # a quarter of a megabyte each would be more
