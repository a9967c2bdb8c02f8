import numpy as np
import pytest
from PIL import Image

from api_client.wire.errors import BackendFailed, LoadFailed
from api_client.wire.messages import Kind
from worker.backends.base import Footprint, Placement
from worker.backends.fake import Fake, Pool
from worker.catalogue import Entry


def entry(**options):
    return Entry("fake/a", backend="fake", options=options)


def ready(placement=None, **options):
    model = Fake(placement or Placement()).load(entry(**options))
    model.lift()
    return model


def texts(model, *content):
    return model.run(Kind.TEXT, [model.prepare_text(text) for text in content])


def images(model, *colours):
    pictures = [Image.new("RGB", (40, 20), colour) for colour in colours]
    return model.run(Kind.IMAGE, [model.prepare_image(picture) for picture in pictures])


def test_a_vector_depends_on_the_content_and_not_on_the_batch():
    model = ready(dimension=16)
    together = texts(model, "a", "b", "a")
    assert together.shape == (3, 16)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together[0], together[2])
    np.testing.assert_array_equal(together[1], texts(model, "b")[0])
    assert not np.array_equal(together[0], together[1])


def test_the_vector_of_an_image_begins_with_its_mean_colours():
    red, blue = images(ready(), "red", "blue")
    np.testing.assert_allclose(red[:3], [1, 0, 0])
    np.testing.assert_allclose(blue[:3], [0, 0, 1])
    assert not np.array_equal(red[3:], blue[3:])


def test_a_vector_may_be_shorter_than_the_three_colours():
    assert images(ready(dimension=2), "red").tolist() == [[1, 0]]


def test_no_rows_are_an_empty_batch():
    assert texts(ready(dimension=4)).shape == (0, 4)


def test_a_long_text_is_truncated():
    prepared = ready(context_chars=3).prepare_text("four")
    assert (prepared.tokens, prepared.truncated) == ("fou", True)


def test_it_runs_on_the_device_only():
    model = Fake(Placement()).load(entry())
    with pytest.raises(AssertionError, match="not on the device"):
        texts(model, "a")


def test_misuse_is_noted_for_those_who_would_swallow_it():
    family = Fake(Placement())
    with pytest.raises(AssertionError):
        family.load(entry()).lower()
    assert family.misuses == ["fake/a is lowered twice"]


def test_nothing_works_after_an_unload():
    model = ready()
    model.unload()
    with pytest.raises(AssertionError, match="unloaded"):
        model.prepare_text("a")
    with pytest.raises(AssertionError, match="unloaded"):
        model.lower()


def test_two_steps_at_once_are_noticed():
    model = ready(before=lambda step: model.lower() if step == "run" else None)
    with pytest.raises(AssertionError, match="during another step"):
        texts(model, "a")


def test_a_load_fails_when_told_to():
    with pytest.raises(LoadFailed, match="no weights"):
        ready(fail_load="no weights")


def test_an_unknown_option_is_refused_by_the_check():
    with pytest.raises(LoadFailed, match="colour"):
        Fake(Placement()).check(entry(colour=1))


def test_a_batch_above_the_limit_does_not_fit():
    model = ready(out_of_memory_above=2)
    texts(model, "a", "b")
    with pytest.raises(MemoryError, match="3 rows"):
        texts(model, "a", "b", "c")


def test_a_marked_item_breaks_the_run():
    model = ready(fail_on="poison")
    with pytest.raises(BackendFailed, match="poison"):
        texts(model, "a", "some poison")


def test_a_marked_image_becomes_nan_and_its_neighbour_does_not():
    red, blue = images(ready(nan_on="#ff0000"), "red", "blue")
    assert np.isnan(red).all()
    assert np.isfinite(blue).all()


def test_weights_take_memory_where_they_are():
    device, host = Pool(100), Pool(100)
    model = Fake(Placement(device="cuda:0"), device=device, host=host).load(
        entry(device_bytes=60, host_bytes=50)
    )
    assert (device.used, host.used) == (0, 50)
    model.lift()
    assert (device.used, host.used) == (60, 0)
    assert model.footprint() == Footprint(device_bytes=60)
    model.lower()
    assert (device.used, host.used) == (0, 50)
    model.unload()
    assert (device.used, host.used) == (0, 0)


def test_without_an_accelerator_weights_stay_in_host_memory():
    device, host = Pool(0), Pool(100)
    model = Fake(Placement(), device=device, host=host).load(entry(device_bytes=9, host_bytes=50))
    model.lift()
    assert model.footprint() == Footprint(host_bytes=50)
    model.unload()
    assert host.used == 0


def test_a_model_may_keep_a_copy_in_host_memory():
    device, host = Pool(100), Pool(100)
    model = Fake(Placement(device="cuda:0"), device=device, host=host).load(
        entry(device_bytes=60, host_bytes=50, host_copy=True)
    )
    model.lift()
    assert model.footprint() == Footprint(device_bytes=60, host_bytes=50)
    model.lower()
    assert (device.used, host.used) == (0, 50)
    model.lift()
    model.unload()
    assert (device.used, host.used) == (0, 0)


def test_a_lift_without_room_leaves_the_model_where_it_was():
    model = Fake(Placement(device="cuda:0"), device=Pool(10)).load(entry(device_bytes=60))
    with pytest.raises(MemoryError, match="10 free"):
        model.lift()
    model.unload()


def test_an_unload_can_forget_to_give_back():
    device = Pool(100)
    model = Fake(Placement(device="cuda:0"), device=device).load(
        entry(device_bytes=60, residue_bytes=20)
    )
    model.lift()
    model.unload()
    assert device.used == 20


def test_slow_steps_sleep_through_the_given_function():
    slept = []
    model = Fake(Placement(), sleep=slept.append).load(entry(load_s=3, lift_s=2, run_s=1))
    model.lift()
    texts(model, "a")
    assert slept == [3, 2, 1]
