"""Pictures and texts through a real Redis and a real worker process."""

import io
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import skimage
from PIL import Image

from api_client import ItemsFailed
from api_client.wire import correlation
from api_client.wire.broker import celery_app
from api_client.wire.codec import unpack_answer
from api_client.wire.errors import (
    BackendFailed,
    BadRequest,
    ImageForbidden,
    ImageMissing,
    ImageUnreadable,
    LoadFailed,
    NonFiniteVector,
    UnknownModel,
)
from api_client.wire.messages import Refused
from api_client.wire.names import EMBED, EMBED_BATCH
from tests.flow.processes import until

PHOTOS = sorted(Path(skimage.__file__).parent.joinpath("data").glob("*.[jp][pn]g"))[:12]


def picture(path, size=(40, 30), mode="RGB", colour=128, **options):
    Image.new(mode, size, colour).save(path, **options)
    return path


@pytest.fixture
def good(tmp_path):
    return picture(tmp_path / "good.png")


def test_vectors_equal_open_clips_own(client, models, tmp_path):
    import open_clip
    import torch

    copies = [tmp_path / photo.name for photo in PHOTOS]
    for photo, copy in zip(PHOTOS, copies, strict=True):
        copy.write_bytes(photo.read_bytes())
    texts = ["a photo of a cat", "coins on a table"]
    images = client.embed_images(copies, model="tiny/ViT-B-32", batch_size=5)
    words = client.embed_texts(texts, model="tiny/ViT-B-32")

    reference, _, preprocess = open_clip.create_model_and_transforms(
        "ViT-B-32", pretrained=str(models / "ViT-B-32.safetensors")
    )
    reference.eval()
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.open(photo)) for photo in PHOTOS])
        wanted_images = reference.encode_image(pixels, normalize=True).numpy()
        wanted_texts = reference.encode_text(open_clip.tokenize(texts), normalize=True).numpy()
    assert (images * wanted_images).sum(axis=1).min() >= 0.99999
    assert (words * wanted_texts).sum(axis=1).min() >= 0.99999


def test_every_way_to_pass_a_picture_gives_the_same_vector(client, good):
    with Image.open(good) as image:
        image.load()
    ways = [good, str(good), good.read_bytes(), image, np.asarray(image)]
    vectors = client.embed_images(ways, model="fake/vision")
    assert np.allclose(vectors, vectors[0])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_rows_keep_their_order_over_many_messages(client):
    texts = [f"text {n}" for n in range(300)]
    counted = []
    vectors = client.embed_texts(texts, model="fake/vision", batch_size=7, progress=counted.append)
    assert sum(counted) == len(texts)
    one_by_one = client.embed_texts(texts[::50], model="fake/vision")
    assert np.array_equal(vectors[::50], one_by_one)


def test_an_empty_list_gives_an_empty_matrix(client):
    assert client.embed_images([], model="tiny/ViT-B-32").shape == (0, 512)
    assert client.embed_texts([], model="tiny/ViT-B-32").dtype == np.float32


@pytest.mark.parametrize(
    ("name", "make", "error"),
    [
        ("missing.png", lambda path: path, ImageMissing),
        ("directory", lambda path: path.mkdir(), ImageUnreadable),
        ("empty.jpg", lambda path: path.touch(), ImageUnreadable),
        ("text.jpg", lambda path: path.write_text("not a picture"), ImageUnreadable),
        (
            "truncated.jpg",
            lambda path: path.write_bytes(_jpeg()[: len(_jpeg()) // 2]),
            ImageUnreadable,
        ),
        ("cmyk.jpg", lambda path: picture(path, mode="CMYK", colour=(1, 2, 3, 4)), None),
        ("deep.png", lambda path: picture(path, mode="I;16"), None),
        ("palette.png", lambda path: picture(path, mode="P"), None),
        ("alpha.png", lambda path: picture(path, mode="RGBA", colour=(1, 2, 3, 4)), None),
        ("animated.gif", lambda path: _gif(path), None),
        ("one.png", lambda path: picture(path, size=(1, 1)), None),
        ("wide.png", lambda path: picture(path, size=(30_000, 40)), None),
    ],
)
def test_a_hostile_picture_costs_its_neighbours_nothing(client, tmp_path, good, name, make, error):
    make(tmp_path / name)
    first, odd, last = client.embed_images_detailed(
        [good, tmp_path / name, good], model="fake/vision"
    )
    assert np.array_equal(first.vector, last.vector)
    if error is None:
        assert odd.error is None
        assert np.linalg.norm(odd.vector) == pytest.approx(1, abs=1e-5)
    else:
        assert isinstance(odd.error, error)
        assert odd.vector is None


def _jpeg():
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def _gif(path):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def test_a_file_outside_the_roots_is_forbidden(client, good):
    _, outside = client.embed_images_detailed([good, "/etc/hostname"])
    assert isinstance(outside.error, ImageForbidden)
    assert isinstance(outside.error, PermissionError)


def test_a_failed_item_raises_from_the_short_call_with_all_items_kept(client, good, tmp_path):
    with pytest.raises(ItemsFailed, match="1 of 2") as raised:
        client.embed_images([good, tmp_path / "missing.png"])
    assert raised.value.items[0].vector is not None
    assert isinstance(raised.value.items[1].error, FileNotFoundError)


def test_over_long_text_is_cut_and_said_so(client):
    short, long = client.embed_texts_detailed(["short", "long " * 100], model="fake/vision")
    assert (short.truncated, long.truncated) == (False, True)
    assert long.vector is not None


def test_a_model_that_answers_nan_or_breaks_costs_only_that_item(client):
    fine, broken, nan = client.embed_texts_detailed(["fine", "break", "nan"], model="fake/vision")
    assert fine.error is None
    assert isinstance(broken.error, BackendFailed)
    assert isinstance(nan.error, NonFiniteVector)


def test_an_unknown_model_is_told_its_neighbours(client):
    with pytest.raises(UnknownModel, match="ViT-B-32/openai"):
        client.embed_texts(["a"], model="ViT-B32/openai")


def test_what_a_model_cannot_embed_is_refused(client, good):
    with pytest.raises(BadRequest, match="does not embed images"):
        client.embed_images([good], model="fake/text")


def test_a_model_that_cannot_be_loaded_says_why(client):
    with pytest.raises(LoadFailed, match="made of sand"):
        client.embed_texts(["a"], model="fake/broken")
    with pytest.raises(LoadFailed) as raised:
        client.embed_texts(["a"], model="RN50/openai")
    assert len(str(raised.value).splitlines()) == 1


def test_a_wrong_argument_never_leaves_the_caller(client):
    with pytest.raises(BadRequest):
        client.embed_images([3])
    with pytest.raises(BadRequest):
        client.embed_texts(["  "])


def test_a_request_that_is_no_request_of_ours_is_answered_all_the_same(client):
    line, id = client._desk.line, str(uuid4())
    with celery_app(line.settings) as app:
        odd = {"texts": ["a"], "unknown": 1}
        app.send_task(EMBED_BATCH, kwargs=odd, queue=EMBED, task_id=id, ignore_result=True)
    until(lambda: client._redis.exists(line.keys.answer(id)))
    answer, _ = unpack_answer(client._redis.lindex(line.keys.answer(id), 0))
    assert isinstance(answer, Refused)
    assert answer.failure.code == BadRequest.code


def test_an_answer_tells_whose_it_is_and_how_long_it_waited(client):
    client.load("fake/vision")
    with correlation.about("order-7"):
        handle = client.submit_texts(["a cat"], model="fake/vision")
    handle.wait(20)
    trunk, _, _ = handle.id.partition(".")
    frame = client._redis.lindex(client._desk.line.keys.answer(f"{trunk}.0"), 0)
    answer, _ = unpack_answer(frame)
    assert answer.correlation == "order-7"
    assert 0 < answer.timings.queue_s < 20


def test_auto_chooses_once_for_all_messages_of_a_call_and_says_why(client):
    client.load("fake/text")
    items = client.embed_texts_detailed(["a cat", "a dog", "a mouse"], model="auto", batch_size=1)
    assert len({(item.model, item.fingerprint) for item in items}) == 1
    assert all(item.chosen.startswith(f"{item.model} is on the device") for item in items)
    named = client.embed_texts_detailed(["a cat"], model=items[0].model)
    assert named[0].chosen == ""
    assert np.array_equal(named[0].vector, items[0].vector)


def test_auto_is_not_for_calls_that_nobody_waits_for(client):
    with pytest.raises(BadRequest, match="name one to submit"):
        client.submit_texts(["a cat"], model="auto")
