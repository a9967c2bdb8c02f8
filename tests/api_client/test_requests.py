import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from api_client import inputs
from api_client.inputs import pictures, several, texts
from api_client.requests import checked, image_calls, text_calls
from api_client.wire.errors import BadRequest, ItemError
from api_client.wire.messages import BlobRef, PathRef, Priority, UrlRef
from api_client.wire.settings import Settings

SETTINGS = Settings.read(chunk_size=2)
MODES = (
    "1", "L", "P", "I", "F", "I;16", "LA", "PA", "La", "RGB", "RGBA", "RGBX", "RGBa", "CMYK",
    "YCbCr", "LAB", "HSV",
)  # fmt: skip


def test_every_way_to_name_a_picture_becomes_a_reference(tmp_path):
    image = Image.new("RGB", (2, 2), "red")
    array = np.zeros((2, 2, 3), np.uint8)
    made = pictures(["a.jpg", tmp_path / "b.jpg", "https://x/c.jpg", b"bytes", image, array])
    kinds = [type(ref) for ref in made.refs]
    assert kinds == [PathRef, PathRef, UrlRef, BlobRef, BlobRef, BlobRef]
    assert made.refs[0].path.startswith("/")
    assert sorted(made.blobs) == [3, 4, 5]
    assert made.blobs[4].startswith(b"\x89PNG")


def test_a_data_uri_is_its_bytes_and_a_broken_one_fails_alone():
    broken = ["data:image/png;base64,!!", "data:image/png,plain"]
    uris = [
        "data:image/png;base64,aGVsbG8=",
        "DATA:image/png;BASE64,aGVs\nbG8=",
        "\n data:;base64,aGVsbG8=",
        "data:application/octet-stream;name=a.png;base64,aGVsbG8=",
    ]
    made = pictures([*uris, *broken])
    assert made.blobs == {**dict.fromkeys(range(4), b"hello"), 4: b"", 5: b""}
    assert {made.failures[n].code for n in (4, 5)} == {"image_unreadable"}


def test_a_picture_that_redis_would_not_take_fails_alone(monkeypatch):
    monkeypatch.setattr(inputs, "MOST_BYTES", 7)
    made = pictures([b"7 bytes", b"8 bytes."])
    assert made.blobs == {0: b"7 bytes", 1: b""}
    assert made.failures[1].code == "image_too_large"


def test_space_around_a_url_is_none_of_it_and_around_a_path_it_is():
    url, path = pictures(["\n https://x/c.jpg ", " a.jpg"]).refs
    assert url.url == "https://x/c.jpg"
    assert path.path.endswith("/ a.jpg")


def test_a_path_may_look_like_the_beginning_of_a_data_uri():
    kinds = {type(ref) for ref in pictures(["data:cat.jpg", "data:, ;base64,"]).refs}
    assert kinds == {PathRef}


@pytest.mark.parametrize(
    "bad", [None, 7, "", np.zeros((2, 2, 3)), np.zeros(3, np.uint8), np.void(b"compares badly")]
)
def test_what_is_no_picture_is_refused_with_its_position(bad):
    with pytest.raises(BadRequest, match=r"images\[6\]"):
        pictures([b"good", bad], first=5)


def test_a_file_whose_name_is_not_utf8_is_sent_by_value(tmp_path):
    odd = tmp_path / "caf\udce9.png"
    odd.write_bytes(b"a picture")
    made = pictures(["a.jpg", odd, str(odd)])
    assert [type(ref) for ref in made.refs] == [PathRef, BlobRef, BlobRef]
    assert made.blobs == {1: b"a picture", 2: b"a picture"}


@pytest.mark.parametrize("name", ["caf\udce9.png", "\udce9\0", "\ud800", "x" * 5000])
def test_a_name_that_cannot_be_sent_fails_alone_in_a_sentence_that_can_be_printed(tmp_path, name):
    made = pictures([b"good", tmp_path / name, f"https://{name * 9000}"])
    assert made.blobs == {0: b"good", 1: b"", 2: b""}
    assert made.failures.keys() == {1, 2}
    assert all(failure.message.encode() for failure in made.failures.values())
    assert all(isinstance(failure.error(), ItemError) for failure in made.failures.values())


def test_who_sends_bare_base64_is_told_how_it_is_sent():
    made = pictures(["/9j/4AAQ" * 60, "iVBORw0KGgo" + "A" * 6000])
    assert [failure.code for failure in made.failures.values()] == ["image_unreadable"] * 2
    assert all("data:image" in failure.message for failure in made.failures.values())


def test_a_relative_path_fails_alone_where_the_folder_is_gone(tmp_path, monkeypatch):
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    made = pictures([b"good", "a.jpg", "/b.jpg"])
    assert [made.failures[n].code for n in made.failures] == ["image_missing"]
    assert "a.jpg is a relative path" in made.failures[1].message


@pytest.mark.parametrize("mode", MODES)
def test_a_pillow_image_of_any_mode_shows_the_same_to_the_worker(mode):
    image = Image.radial_gradient("L").convert("RGB").convert(mode)
    [sent] = pictures([image]).blobs.values()
    shown = image.convert("LA") if mode == "La" else image  # Pillow knows no shorter way
    with Image.open(io.BytesIO(sent), formats=["PNG", "TIFF"]) as read:
        assert read.convert("RGB").tobytes() == shown.convert("RGB").tobytes()


NOISE = Image.effect_noise((64, 64), 90).convert("RGB")


@pytest.mark.parametrize(
    ("of", "how", "then"),
    [
        ("RGB", {"format": "TIFF", "compression": "jpeg"}, "YCbCr"),
        ("CMYK", {"format": "TIFF", "compression": "jpeg"}, "CMYK"),
        ("RGB", {"format": "TIFF", "compression": "jpeg"}, "F"),
        ("1", {"format": "TIFF", "compression": "group4"}, "CMYK"),
        ("RGB", {"format": "PNG", "transparency": (1, 2, 3)}, "1"),
    ],
)
def test_how_the_file_of_a_pillow_image_was_written_changes_nothing(of, how, then):
    NOISE.convert(of).save(file := io.BytesIO(), **how)
    with Image.open(file) as read:
        image = read.convert(then)
    made = pictures([image])
    assert not made.failures
    with Image.open(io.BytesIO(made.blobs[0]), formats=["PNG", "TIFF"]) as sent:
        assert sent.mode == then
        assert sent.tobytes() == image.tobytes()


def test_a_pillow_image_that_was_small_in_its_file_is_so_on_its_way():
    Image.new("CMYK", (500, 500)).save(file := io.BytesIO(), "TIFF", compression="tiff_lzw")
    with Image.open(file) as image:
        [sent] = pictures([image]).blobs.values()
    assert len(sent) < 50_000 < len(image.tobytes())


def test_a_pillow_image_or_an_array_that_is_empty_or_truncated_fails_alone():
    whole = io.BytesIO()
    Image.effect_noise((99, 99), 50).save(whole, "JPEG")
    truncated = Image.open(io.BytesIO(whole.getvalue()[:2000]))
    empty = Image.new("RGB", (0, 5)), Image.new("CMYK", (5, 0)), np.zeros((0, 2, 3), np.uint8)
    made = pictures([truncated, b"good", *empty])
    assert made.failures.keys() == {0, 2, 3, 4}
    assert {failure.code for failure in made.failures.values()} == {"image_unreadable"}
    assert made.blobs == {0: b"", 1: b"good", 2: b"", 3: b"", 4: b""}


@pytest.mark.parametrize(
    "bad", [["ok", ""], ["ok", "  \n"], ["ok", 3], ["ok", None], ["ok", "cut \ud83d"]]
)
def test_what_is_no_text_is_refused_with_its_position(bad):
    with pytest.raises(BadRequest, match=r"texts\[1\]"):
        texts(bad)


@pytest.mark.parametrize("one", ["a.jpg", b"it", bytearray(b"it"), io.BytesIO(b"has\nlines")])
def test_one_picture_instead_of_a_list_is_refused(one):
    with pytest.raises(BadRequest, match="list"):
        several(one)


@pytest.mark.parametrize(
    "option",
    [
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"timeout": 0},
        {"timeout": -1},
        {"model": ""},
        {"also": "sound"},
    ],
)
def test_an_impossible_option_is_refused_by_name(option):
    with pytest.raises(BadRequest, match=next(iter(option))):
        checked(option)


def test_numbers_of_numpy_are_numbers():
    options = {"batch_size": np.int64(2), "timeout": np.float32(3), "keep_alive_s": np.int32(4)}
    calls = [make() for make in text_calls(["a"] * 3, checked(options), Settings.read(), "test")]
    assert [len(call.request.texts) for call in calls] == [2, 1]
    assert calls[0].request.keep_alive_s == 4


@pytest.mark.parametrize(("model", "sent"), [("auto", "text"), ("fake/small", None), (None, None)])
def test_what_follows_is_told_where_a_model_is_chosen_only(model, sent):
    options = checked({"model": model, "also": "text"})  # older workers refuse what they don't know
    [make] = image_calls(["a.jpg"], options, SETTINGS, "")
    assert make.do().request.also == sent


def test_an_option_that_is_none_of_ours_is_a_type_error():
    with pytest.raises(TypeError, match="batchsize"):
        checked({"batchsize": 3})


def test_one_message_is_interactive_and_several_are_bulk():
    [make] = text_calls(["a", "b"], {}, SETTINGS, "")
    assert make().priority is Priority.INTERACTIVE
    calls = [make() for make in text_calls(list("abcde"), {}, SETTINGS, "")]
    assert [len(call.request.texts) for call in calls] == [2, 2, 1]
    assert {call.priority for call in calls} == {Priority.BULK}
    [first, *_] = text_calls(list("abcde"), {"priority": "interactive"}, SETTINGS, "")
    assert first().priority is Priority.INTERACTIVE


def test_a_generator_is_read_no_further_than_needed():
    read = []

    def source():
        for name in "abcdefgh":
            read.append(name)
            yield f"{name}.jpg"

    calls = image_calls(source(), {}, SETTINGS, "")
    next(calls)
    assert len(read) == 4


def test_a_signed_request_names_the_digest_of_its_bytes():
    pictures = ["a.jpg", b"bytes"]
    signing = Settings.read(chunk_size=2, signing_key="k" * 16)
    [plain], [sealed] = (
        [make.do().request.images for make in image_calls(pictures, {}, settings, "")]
        for settings in (SETTINGS, signing)
    )
    assert plain[1].sha256 is None
    assert sealed == (plain[0], BlobRef(blob=1, sha256=hashlib.sha256(b"bytes").hexdigest()))
