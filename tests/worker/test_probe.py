from collections.abc import Iterator, Sequence

import pytest

from api_client.wire.messages import Kind
from worker.backends.base import Placement, Tier
from worker.backends.fake import Fake
from worker.catalogue import Catalogue, Entry
from worker.datapath.batcher import Batcher
from worker.probe import probe
from worker.residency.ledger import Ledger
from worker.residency.slots import Limits, Slots
from worker.residency.sweeps import Move

CATALOGUE = Catalogue(
    [
        Entry("well", backend="fake"),
        Entry("texts", backend="fake", kinds=(Kind.TEXT,)),
        Entry("broken", backend="fake", options={"fail_on": "#000000"}),
    ]
)


class Device:
    """What is probed, and the rows of each pass."""

    def __init__(self) -> None:
        family = Fake(Placement("cuda:0"))
        self.passes: list[tuple[Kind, str]] = []
        self.batcher = Batcher(
            batch_size=4,
            decode_threads=1,
            on_pass=lambda kind, rows, passed: self.passes.append((kind, passed)),
        )
        self.slots = Slots(
            check=family.check,
            load=family.load,
            limits=Limits(slots=3),
            ledger=Ledger(),
            unified=False,
        )

    def probe(self, *held: str, at_rest: Sequence[str] = ()) -> list[tuple[Kind, str]]:
        """What it does where these were used, one after the other."""
        for model in held:
            self.slots.load(CATALOGUE[model])
        self.slots.apply([Move(model, Tier.HOST, "idle") for model in at_rest])
        probe(CATALOGUE, self.slots, self.batcher)
        self.batcher.close()
        return self.passes


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    yield device
    device.batcher.close()
    device.slots.close()


def test_one_pass_of_the_model_that_was_used_last_is_enough(device: Device) -> None:
    assert device.probe("well", "texts") == [(Kind.TEXT, "ok")]


def test_a_model_of_pictures_is_tried_with_one(device: Device) -> None:
    assert device.probe("texts", "well") == [(Kind.IMAGE, "ok")]


def test_a_model_that_fails_says_nothing_of_the_device_while_another_works(device: Device) -> None:
    assert device.probe("texts", "broken") == [(Kind.IMAGE, "failed"), (Kind.TEXT, "ok")]


def test_a_model_at_rest_stays_there_while_another_is_on_the_device(device: Device) -> None:
    assert device.probe("texts", "broken", at_rest=["broken"]) == [(Kind.TEXT, "ok")]


def test_of_models_at_rest_one_is_brought_up_whatever_comes_of_it(device: Device) -> None:
    held = ("well", "texts", "broken")
    assert device.probe(*held, at_rest=held) == [(Kind.IMAGE, "failed")]


def test_where_nothing_is_held_nothing_is_tried(device: Device) -> None:
    assert device.probe() == []
