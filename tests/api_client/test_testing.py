import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from api_client.results import ItemsFailed
from api_client.talks import LARGE_BYTES
from api_client.testing import MODELS, SEATS, FakeAsyncClient, FakeClient
from api_client.wire.errors import (
    BadRequest,
    ImageMissing,
    ImageUnreadable,
    NoAnswer,
    UnknownJob,
    UnknownModel,
)
from api_client.wire.jobs import JobState
from api_client.wire.messages import Kind


def test_equal_items_get_equal_vectors_and_others_others():
    client = FakeClient()
    rows = client.embed_texts(["a", "b", "a"])
    assert np.array_equal(rows[0], rows[2])
    assert abs(client.similarity(rows[0], rows[1])) < 0.9
    assert np.array_equal(FakeClient().embed_texts(["a"])[0], rows[0])
    assert client.embed_images(["x.jpg", b"x"], model="fake/large").shape == (2, 64)


def test_an_item_fails_where_it_is_told_to():
    client = FakeClient(failing={"broken.jpg": ImageUnreadable("cut short")})
    with pytest.raises(ItemsFailed, match="at 1: cut short"):
        client.embed_images(["good.jpg", "broken.jpg"])


def test_arguments_are_checked_as_the_client_does():
    with pytest.raises(BadRequest, match="texts"):
        FakeClient().embed_texts([""])
    with pytest.raises(UnknownModel, match="fake/small"):
        FakeClient().load("a/b")


def test_a_model_embeds_only_what_it_is_for_and_auto_finds_one_that_does():
    words = MODELS[0].model_copy(update={"id": "fake/words", "kinds": (Kind.TEXT,)})
    client = FakeClient(models=[words, *MODELS])
    with pytest.raises(BadRequest, match="fake/words does not embed images"):
        client.embed_images([b"picture"])
    [item] = client.embed_images_detailed([b"picture"], model="auto")
    assert (item.model, item.chosen) == ("fake/small", "fake/small embeds images")
    with pytest.raises(BadRequest, match="no model here can embed texts and images"):
        FakeClient(models=[words]).embed_texts(["a"], model="auto", also="image")


def test_models_come_and_go():
    client = FakeClient()
    client.embed_texts(["a"])
    assert client.is_loaded("fake/small")
    client.switch("fake/large")
    assert client.current_model() == "fake/large"
    assert [model.id for model in client.loaded_models()] == ["fake/large"]
    client.unload(scope="vision")
    assert client.loaded_models() == []
    assert client.status().workers[0].current == "fake/large"


def test_a_fake_that_is_closed_answers_on_as_a_client_connects_anew():
    with FakeClient() as client:
        client.embed_texts(["a"])
    assert len(client.embed_texts(["a"])) == 1


def test_a_fake_without_models_says_what_it_wants():
    with pytest.raises(BadRequest, match="models is empty; pass at least one"):
        FakeClient(models=[])


def test_what_is_set_is_remembered():
    client = FakeClient()
    [first] = client.set_knobs({"slots": 5, "pinned": ["fake/large"]})
    [second] = client.set_knobs({"slots": 5})
    assert (first.changed, second.changed) == (True, False)
    [worker] = client.status().workers
    assert worker.slots == 5
    assert worker.settings == {"slots": "5", "pinned": "('fake/large',)"}
    with pytest.raises(UnknownModel):
        client.set_knobs({"pinned": ["a/b"]})


def test_what_is_submitted_can_be_fetched_and_nothing_else():
    client = FakeClient()
    handle = client.submit_texts(["a"] * 3, batch_size=2)
    assert len(client.handle(handle.id).wait()) == 3
    with pytest.raises(NoAnswer):
        client.handle("00000000-0000-0000-0000-000000000000.1").wait()


def test_an_answer_may_be_large():
    client = FakeClient(models=[MODELS[0].model_copy(update={"dimension": 2 * LARGE_BYTES})])
    assert client.embed_texts(["a"]).nbytes > LARGE_BYTES


def test_a_slow_source_is_not_waited_for_before_its_first_items_come():
    read = []

    def source():
        for i in range(12):
            time.sleep(0.02)
            read.append(i)
            yield b"%d" % i

    items = FakeClient().stream_images(source(), batch_size=1, timeout=0.1)
    next(items)
    assert len(read) == 2  # one ahead
    assert len(list(items)) == 11


def test_threads_may_share_it():
    usual = sys.getswitchinterval()
    client = FakeClient()

    def story(_):
        client.embed_texts(["a"])
        client.unload()
        return client.embed_texts(["b"], model="fake/large").shape

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            assert set(pool.map(story, range(200))) == {(1, 64)}
    finally:
        sys.setswitchinterval(usual)


def test_the_awaited_fake_is_the_same():
    async def story():
        async with FakeAsyncClient() as client:
            rows = await client.embed_texts(["a"])
            items = [item async for item in client.stream_images([b"1", b"2", b"3"], batch_size=2)]
            status = await client.status()
            return rows, items, status

    rows, items, status = asyncio.run(story())
    assert np.array_equal(rows, FakeClient().embed_texts(["a"]))
    assert len(items) == 3
    assert status.workers[0].held[0].usage_count == 3


def test_the_awaited_fake_belongs_to_no_loop():
    client = FakeAsyncClient()

    async def many():
        return await asyncio.gather(*(client.embed_texts(f"{i}") for i in range(SEATS + 20)))

    assert len(asyncio.run(many())) == len(asyncio.run(many()))


@pytest.mark.parametrize("error", [ValueError("no"), ImageMissing])
def test_an_error_that_no_worker_could_send_is_refused_when_the_fake_is_made(error):
    with pytest.raises(BadRequest, match=r"failing\['a.jpg'\] is .*ImageMissing.'it is gone'"):
        FakeClient(failing={"a.jpg": error})


def test_a_job_is_accepted_and_over():
    client = FakeClient()
    job = client.reembed("/pictures", sink="/vectors", id="mine")
    assert job.wait(timeout=1).state is JobState.COMPLETE
    assert [status.id for status in client.jobs()] == ["mine"]
    with pytest.raises(BadRequest, match="there is a job 'mine' already"):
        client.reembed("/pictures", sink="/vectors", id="mine")
    with pytest.raises(BadRequest, match="is complete"):
        job.pause()
    assert job.verify().state is JobState.COMPLETE
    with pytest.raises(UnknownJob):
        client.job("another").status()
