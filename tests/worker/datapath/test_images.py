import errno
import hashlib
import io
import os
import resource
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image, PngImagePlugin
from skimage import data

from api_client.wire.errors import (
    ImageForbidden,
    ImageGone,
    ImageMissing,
    ImageTooLarge,
    ImageUnreachable,
    ImageUnreadable,
)
from api_client.wire.messages import BlobRef, PathRef, UrlRef
from worker.datapath import decoding, jpeg
from worker.datapath.decoders import Decoders
from worker.datapath.decoding import Limits
from worker.datapath.images import ImageReader
from worker.extent import extent_of
from worker.processors import CLAIMS
from worker.settings import WorkerSettings

PHOTO = Image.fromarray(data.chelsea())
LIMITS = Limits(pixels=40_000_000, scales=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(1, limits=LIMITS, timeout_s=20)
    yield decoders
    decoders.close()


@pytest.fixture
def reader(root: Path, decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> ImageReader:
    reader = ImageReader(WorkerSettings.read(image_roots=(root,), max_image_pixels=LIMITS.pixels))
    monkeypatch.setattr(reader, "_decoders", decoders)  # a process takes half a second to start
    return reader


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def blob(reader: ImageReader, content: bytes, near: int | None = 224) -> Image.Image:
    return reader.open(BlobRef(blob=0), {0: content}, near=near)


def path(reader: ImageReader, file: Path | str) -> Image.Image:
    return reader.open(PathRef(path=str(file)), {}, near=224)


def test_a_file_below_a_root_comes_as_its_pixels(reader: ImageReader, root: Path) -> None:
    (root / "cats").mkdir()
    PHOTO.save(root / "cats" / "chelsea.png")
    assert np.array_equal(np.asarray(path(reader, root / "cats" / "chelsea.png")), data.chelsea())


def test_a_link_within_the_root_is_followed(reader: ImageReader, root: Path) -> None:
    PHOTO.save(root / "chelsea.png")
    (root / "link.png").symlink_to("chelsea.png")
    assert path(reader, root / "link.png").size == PHOTO.size


@pytest.mark.parametrize("way", ["{root}/../secret.png", "{root}/link.png", "{root}/up/secret.png"])
def test_no_way_leads_out_of_the_roots(reader: ImageReader, root: Path, way: str) -> None:
    PHOTO.save(root.parent / "secret.png")
    (root / "link.png").symlink_to(root.parent / "secret.png")
    (root / "up").symlink_to(root.parent)
    with pytest.raises(ImageForbidden, match="outside the image roots"):
        path(reader, way.format(root=root))


def test_a_folder_whose_name_begins_like_a_root_is_outside(reader: ImageReader, root: Path) -> None:
    sibling = root.with_name(root.name + "-private")
    sibling.mkdir()
    PHOTO.save(sibling / "a.png")
    with pytest.raises(ImageForbidden):
        path(reader, sibling / "a.png")


def test_a_link_swapped_in_after_the_name_was_checked_is_not_followed(
    reader: ImageReader, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PHOTO.save(root.parent / "secret.png")
    (root / "a.png").symlink_to(root.parent / "secret.png")
    monkeypatch.setattr(os.path, "realpath", lambda name: str(name))  # it looked harmless then
    with pytest.raises(ImageUnreadable):
        path(reader, root / "a.png")


def test_without_roots_every_path_is_refused(root: Path) -> None:
    with pytest.raises(ImageForbidden, match="CLIPYARD_IMAGE_ROOTS"):
        path(ImageReader(WorkerSettings.read()), root / "a.png")


def test_addresses_are_refused(reader: ImageReader) -> None:
    with pytest.raises(ImageForbidden, match="URLs are off"):
        reader.open(UrlRef(url="http://127.0.0.1/a.png"), {}, near=224)


def test_a_worker_with_too_many_files_open_does_not_blame_the_picture(
    reader: ImageReader, root: Path
) -> None:
    PHOTO.save(root / "a.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(ImageUnreachable, match="Too many open files"):
            path(reader, root / "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("trouble", [errno.EIO, errno.ENOTCONN])
def test_a_mount_that_has_lost_its_server_does_not_blame_the_picture(
    reader: ImageReader, root: Path, monkeypatch: pytest.MonkeyPatch, trouble: int
) -> None:
    def break_off(*_: Any, **__: Any) -> None:
        raise OSError(trouble, os.strerror(trouble))

    PHOTO.save(root / "a.png")
    monkeypatch.setattr(os, "open", break_off)
    with pytest.raises(ImageUnreachable, match=os.strerror(trouble)):
        path(reader, root / "a.png")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none.png", r"there is no file '.*' on this worker"),  # its caller may see one
        ("none/none.png", r"there is no file '.*' on this worker"),
        ("a\0b.png", "no file can be named"),
    ],
)
def test_a_name_without_a_file_is_missing(
    reader: ImageReader, root: Path, name: str, sentence: str
) -> None:
    with pytest.raises(ImageMissing, match=sentence):
        path(reader, f"{root}/{name}")


def test_bytes_that_are_gone_can_be_sent_again(reader: ImageReader) -> None:
    with pytest.raises(ImageGone, match="send them again") as caught:
        reader.open(BlobRef(blob=3), {}, near=224)
    assert caught.value.retryable


def test_bytes_that_were_changed_after_they_were_signed_are_not_decoded(
    reader: ImageReader,
) -> None:
    content = encoded(PHOTO, "PNG")
    ref = BlobRef(blob=0, sha256=hashlib.sha256(content).hexdigest())
    assert reader.open(ref, {0: content}, near=224).size == PHOTO.size
    with pytest.raises(ImageForbidden, match="not the ones sent"):
        reader.open(ref, {0: encoded(PHOTO.rotate(90), "PNG")}, near=224)


def test_directories_and_pipes_are_refused_at_once(reader: ImageReader, root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    for special in (root, root / "pipe.png"):
        with pytest.raises(ImageUnreadable, match="not a regular file"):
            path(reader, special)


def test_devices_and_windows_into_the_kernel_are_refused() -> None:
    reader = ImageReader(WorkerSettings.read(image_roots=("/dev", "/proc")))
    with pytest.raises(ImageUnreadable, match="not a regular file"):
        path(reader, "/dev/zero")
    for inside in ("/proc/self/environ", "/proc/self/mem"):
        # A mistaken root still shows pictures only.
        with pytest.raises((ImageUnreadable, ImageUnreachable)):
            path(reader, inside)


def test_the_way_through_proc_leads_nowhere_else(reader: ImageReader, root: Path) -> None:
    PHOTO.save(root.parent / "secret.png")
    with (root.parent / "secret.png").open("rb") as file:
        for way in ("/proc/self/cwd/a.png", f"/proc/self/fd/{file.fileno()}", "/proc/1/environ"):
            with pytest.raises(ImageForbidden):
                path(reader, way)
        (root / "a.png").symlink_to(f"/proc/self/fd/{file.fileno()}")
        with pytest.raises(ImageForbidden):
            path(reader, root / "a.png")


def test_a_folder_swapped_for_a_link_after_the_name_was_checked_is_not_entered(
    reader: ImageReader, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PHOTO.save(root.parent / "secret.png")
    (root / "cats").mkdir()
    real = os.path.realpath

    def swap(name: str) -> str:
        checked = real(name)
        (root / "cats").rmdir()
        (root / "cats").symlink_to(root.parent)
        return checked

    monkeypatch.setattr(os.path, "realpath", swap)
    with pytest.raises((ImageMissing, ImageUnreadable)):  # Linux: "not a directory"
        path(reader, root / "cats" / "secret.png")


def test_what_is_no_picture_leaves_nothing_open(reader: ImageReader, root: Path) -> None:
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")
    before = os.listdir("/proc/self/fd")
    for name in ("folder", "pipe", "none"):
        with pytest.raises((ImageMissing, ImageUnreadable)):
            path(reader, root / name)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("name", ["cafe\u0301.png", "..\uff0fsecret.png", "a\u202e.png"])
def test_odd_names_are_only_names(reader: ImageReader, root: Path, name: str) -> None:
    PHOTO.save(root.parent / "secret.png")
    PHOTO.save(root / "caf\u00e9.png")
    with pytest.raises(ImageMissing):
        path(reader, f"{root}/{name}")


def test_a_file_over_the_limit_of_bytes_is_refused(root: Path) -> None:
    PHOTO.save(root / "a.png")
    reader = ImageReader(WorkerSettings.read(image_roots=(root,), max_image_bytes=1000))
    with pytest.raises(ImageTooLarge, match="1000 bytes"):
        path(reader, root / "a.png")
    with pytest.raises(ImageTooLarge, match="1000 bytes"):
        blob(reader, b"x" * 1001)


def test_a_decompression_bomb_is_refused_by_its_header(reader: ImageReader) -> None:
    bomb = encoded(Image.new("1", (14_000, 14_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(ImageTooLarge, match="14000x14000"):
        blob(reader, bomb)
    with pytest.raises(ImageTooLarge, match="9000x9000"):
        blob(reader, avif_that_says(9000))


def avif_that_says(edge: int) -> bytes:
    """Whatever it holds."""
    content = bytearray(encoded(PHOTO, "AVIF"))
    at = content.index(b"ispe") + 8
    content[at : at + 8] = edge.to_bytes(4) * 2
    return bytes(content)


def test_an_avif_is_decoded_in_a_process_for_it_may_hold_more_than_it_says(
    reader: ImageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert np.ptp(np.asarray(blob(reader, avif_that_says(64)))) > 200  # the photo, made smaller
    monkeypatch.delattr(decoding, "decode")
    assert blob(reader, encoded(PHOTO, "AVIF")).size == PHOTO.size


def test_where_the_setting_says_so_every_picture_is_decoded_in_a_process(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ImageReader(WorkerSettings.read(decode_processes=1))
    monkeypatch.setattr(reader, "_decoders", decoders)
    monkeypatch.delattr(decoding, "decode")
    assert blob(reader, encoded(PHOTO, "PNG")).size == PHOTO.size


def test_an_avif_is_decoded_by_one_thread() -> None:
    """Above all where a process may start no other, as a decoder of ours that is not root's."""
    decoding.set_up()
    assert AvifImagePlugin._get_default_max_threads() == 1


def test_where_pillow_was_built_without_avif_the_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = encoded(PHOTO, "AVIF")
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    decoding.set_up()
    with pytest.raises(ImageUnreadable, match=r"^it is an AVIF, which .* Pillow cannot"):
        decoding.decode(content, name="it", near=224, limits=LIMITS)


def test_a_bmp_in_runs_is_decoded_in_a_process_for_pillow_does_it_pixel_by_pixel(
    reader: ImageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge, colours = 300, bytes(4 * 256)
    runs = b"\x01\x07\0\0" * edge + b"\0\1"  # a pixel, and the rest of the row
    about = struct.pack("<IiiHHIIiiII", 40, edge, edge, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + len(about) + len(colours)
    head = b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start)
    monkeypatch.delattr(decoding, "decode")
    opened = blob(reader, head + about + colours + runs)
    assert (opened.size, int(np.asarray(opened).sum())) == ((edge, edge), 7 * edge)


STRIPS = {"compression": "tiff_lzw", "strip_size": 1}


@pytest.mark.parametrize(
    ("mode", "how"),
    [("L", STRIPS), ("I;16B", STRIPS), ("L", {"big_tiff": True})],
)
def test_a_tiff_of_thousands_of_strips_is_decoded_in_a_process_for_pillow_takes_them_for_numbers(
    reader: ImageReader, monkeypatch: pytest.MonkeyPatch, mode: str, how: dict[str, Any]
) -> None:
    content = encoded(Image.new(mode, (9, 5000), 7), "TIFF", **how)
    monkeypatch.delattr(decoding, "decode")
    assert blob(reader, content, near=None).getpixel((0, 0)) == 7


@pytest.mark.parametrize("mode", ["L", "I;16B", "RGB", "CMYK", "F"])
@pytest.mark.parametrize("how", [{}, {"compression": "tiff_lzw"}, {"icc_profile": bytes(9999)}])
def test_other_tiffs_are_decoded_here(mode: str, how: dict[str, Any]) -> None:
    assert not decoding.needs_process(encoded(Image.new(mode, (900, 600)), "TIFF", **how))


def test_a_tiff_whose_directory_says_more_than_it_can_hold_is_decoded_in_a_process() -> None:
    content = encoded(Image.new("L", (9, 9)), "TIFF", icc_profile=bytes(9))
    assert not decoding.needs_process(content)
    told = struct.pack("<HHI", 34675, 7, 9)
    assert decoding.needs_process(content.replace(told, struct.pack("<HHI", 34675, 7, 2**20)))
    assert decoding.needs_process(content[:12])


@pytest.mark.parametrize("told", [(324, 1, 5000), (273, 1, 5000), (34665, 4, 1), (34853, 4, 1)])
def test_a_tiff_with_offsets_of_bytes_or_with_exif_is_decoded_in_a_process(told: Any) -> None:
    content = encoded(Image.new("L", (99, 99)), "TIFF", icc_profile=bytes(9))
    profile = struct.pack("<HHI", 34675, 7, 9)
    assert profile in content
    assert decoding.needs_process(content.replace(profile, struct.pack("<HHI", *told)))


def test_a_ppm_is_decoded_in_a_process_for_pillow_does_some_pixel_by_pixel(
    reader: ImageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(decoding, "decode")
    opened = blob(reader, b"P6\n30 20\n100\n" + bytes(range(100)) * 18)
    assert opened.getpixel((1, 0)) == (8, 10, 13)  # 3, 4 and 5 of 100


def test_a_tiff_that_says_less_than_its_tile_holds_is_refused(reader: ImageReader) -> None:
    tile = 7000
    packed = zlib.compress(bytes(tile * tile))
    tags = [(256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    tags += [(322, 4, tile), (323, 4, tile), (324, 4, 8), (325, 4, len(packed))]
    rows = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    directory = struct.pack("<H", len(tags)) + rows + bytes(4)
    bomb = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory
    assert len(bomb) < 100_000
    with pytest.raises(ImageTooLarge, match="in tiles of 7000x7000"):
        blob(reader, bomb)


def test_a_strip_that_a_model_would_enlarge_to_gigabytes_is_refused(reader: ImageReader) -> None:
    for size in [(1, 1500), (65_000, 99)]:
        strip = encoded(Image.new("L", size), "PNG")
        with pytest.raises(ImageTooLarge, match=f"{size[0]}x{size[1]}, too thin"):
            blob(reader, strip)
        assert blob(reader, strip, near=None).size == size


def test_a_jpeg_of_thousands_of_passes_is_refused(reader: ImageReader) -> None:
    whole = encoded(PHOTO.resize((2000, 1500)), "JPEG", progressive=True)
    last_pass = whole[whole.rindex(b"\xff\xc4") : -2]
    assert blob(reader, whole).height < 1500
    with pytest.raises(ImageTooLarge, match="passes"):
        blob(reader, whole[:-2] + last_pass * 300 + whole[-2:])


def test_a_jpeg_whose_exif_is_in_thousands_of_pieces_is_refused(reader: ImageReader) -> None:
    whole, piece = encoded(PHOTO, "JPEG"), b"\xff\xe1\0\x09Exif\0\0a"
    assert blob(reader, whole[:2] + piece * 16 + whole[2:]).size == PHOTO.size
    with pytest.raises(ImageTooLarge, match="EXIF in more than 16 pieces"):
        blob(reader, whole[:2] + piece * 17 + whole[2:])


@pytest.mark.parametrize("progressive", [False, True])
def test_only_pieces_of_exif_that_a_reader_meets_are_counted(progressive: bool) -> None:
    whole = encoded(PHOTO, "JPEG", progressive=progressive)
    piece = b"\xff\xe1\0\x09Exif\0\0a"
    assert jpeg.exif_pieces(whole + b"Exif\0\0" * 9) == 0
    assert jpeg.exif_pieces(whole[:2] + 3 * piece + whole[2:]) == 3
    assert jpeg.exif_pieces(whole[:2] + piece + b"\xff" + piece + whole[2:]) == 2  # filling


LURE = b"\xff\xc0\x00\x11\x08\x00\x08\x00\x08\x03" + bytes(9) + b"\xff\xda\x00\x0c\x03" + bytes(9)


@pytest.mark.parametrize(
    ("before", "lands"),
    [
        pytest.param(b"\xff\xe0", 0, id="a thumbnail"),
        pytest.param(b"\xff\xff\xe0", 0xE0FF, id="filling"),
        pytest.param(b"\xff\xd0\xff\xe0", 0xFFE0, id="a marker without a length"),
    ],
)
def test_passes_are_counted_whatever_stands_before_them(
    reader: ImageReader, before: bytes, lands: int
) -> None:
    """A sequential scan in a text, at the place where a naive reader goes on."""
    whole = encoded(PHOTO.resize((2000, 1500)), "JPEG", progressive=True)
    last_pass = whole[whole.rindex(b"\xff\xc4") : -2]
    text = before + b"\xff\xff" + bytes(max(0, lands - len(before))) + LURE
    padded = text.ljust(len(before) + 0xFFFF, b"\0")
    with pytest.raises(ImageTooLarge, match="passes"):
        blob(reader, whole[:2] + padded + whole[2:-2] + last_pass * 300 + whole[-2:])


def test_a_sequential_jpeg_is_not_read_beyond_its_first_scan(reader: ImageReader) -> None:
    whole = encoded(PHOTO.resize((2000, 1500)), "JPEG")
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageUnreadable, match="broken data"):
        blob(reader, whole[:-2] + scan * 300 + whole[-2:])


def test_a_text_of_numbers_is_no_picture(reader: ImageReader) -> None:
    for magic in (b"P1", b"P2", b"P3"):
        with pytest.raises(ImageUnreadable, match="binary"):
            blob(reader, magic + b" 2 2 255\n" + b"#\n" * 10**6)


def test_a_picture_that_is_also_something_else_is_a_picture(reader: ImageReader) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("run.py", "print()")
    script = b"GIF89a=1;<script>alert(1)</script>"
    assert blob(reader, encoded(PHOTO, "PNG") + archive.getvalue()).size == PHOTO.size
    assert blob(reader, encoded(PHOTO, "JPEG") + b"%PDF-1.7").size == PHOTO.size
    with pytest.raises(ImageUnreadable):
        blob(reader, script)


def test_a_picture_above_pillows_own_limit_is_ours_to_judge() -> None:
    reader = ImageReader(WorkerSettings.read(max_image_pixels=250_000_000))
    large = encoded(Image.new("1", (10_000, 9_000)), "PNG")
    assert blob(reader, large).size == (10_000, 9_000)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a picture at all",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.7\n",
        encoded(PHOTO, "SGI"),
        encoded(PHOTO, "JPEG")[:5000],
        encoded(PHOTO, "PNG")[:5000],
        encoded(PHOTO, "WEBP")[:5000],
        encoded(PHOTO, "TIFF")[:5000],
        encoded(PHOTO, "AVIF")[:5000],
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300),
        encoded(PHOTO, "PNG").replace(b"IDAT", b"IDAX"),
        b"\xff\xd8\xff" + bytes(300),
    ],
    ids=[
        *("empty", "text", "eps", "pdf", "sgi", "jpeg", "png", "webp", "tiff", "avif", "heic"),
        *("chunk", "marker"),
    ],
)
def test_what_is_no_whole_picture_is_unreadable(reader: ImageReader, content: bytes) -> None:
    with pytest.raises(ImageUnreadable):
        blob(reader, content)


def test_a_jpeg_that_pillow_does_not_know_is_still_called_one(reader: ImageReader) -> None:
    whole = encoded(PHOTO, "JPEG")
    of_12_bits = whole.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c")
    for content in (of_12_bits, whole[:20]):
        with pytest.raises(ImageUnreadable, match=r"is a JPEG that .* cut short, .* 12 bits"):
            blob(reader, content)


MODES: dict[str, Callable[[], bytes]] = {
    "cmyk": lambda: encoded(PHOTO.convert("CMYK"), "JPEG"),
    "grey": lambda: encoded(PHOTO.convert("L"), "JPEG"),
    "palette": lambda: encoded(PHOTO.convert("P"), "PNG", transparency=b"\x00\x80"),
    "alpha": lambda: encoded(PHOTO.convert("RGBA"), "PNG"),
    "16 bits": lambda: encoded(Image.fromarray(data.coins().astype(np.uint16) * 200), "PNG"),
    "float": lambda: encoded(Image.fromarray(data.coins().astype(np.float32)), "TIFF"),
    "one pixel": lambda: encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
    "avif": lambda: encoded(PHOTO, "AVIF"),
    "avif, grey": lambda: encoded(PHOTO.convert("L"), "AVIF"),
    "avif, alpha": lambda: encoded(PHOTO.convert("RGBA"), "AVIF"),
    "wide": lambda: encoded(Image.new("RGB", (30_000, 60), "red"), "JPEG"),
}


@pytest.mark.parametrize("kind", MODES)
def test_unusual_pictures_come_as_pillow_sees_them(reader: ImageReader, kind: str) -> None:
    content = MODES[kind]()
    seen = Image.open(io.BytesIO(content))
    opened = blob(reader, content)
    assert (opened.mode, opened.size) == (seen.mode, seen.size)
    assert np.array_equal(np.asarray(opened), np.asarray(seen))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = seen.convert("RGB")
    assert np.array_equal(np.asarray(opened.convert("RGB")), np.asarray(want))


def test_of_an_animation_the_first_frame_counts(reader: ImageReader) -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP", "PNG", "AVIF"):
        content = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        red, green, blue = blob(reader, content).convert("RGB").getpixel((4, 4))
        assert red > 200 > 60 > max(green, blue)


def test_orientation_tags_are_not_applied_as_open_clip_does_not(reader: ImageReader) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6  # turned by a quarter
    for format in ("JPEG", "PNG", "WEBP", "AVIF"):
        assert blob(reader, encoded(PHOTO, format, exif=tags)).size == PHOTO.size
    turned = blob(reader, encoded(PHOTO, "TIFF", tiffinfo={0x0112: 6}))  # Pillow does, of TIFF
    assert extent_of(turned) == turned.size == PHOTO.size[::-1]


@pytest.mark.parametrize(
    ("size", "comes_as", "extent"),
    [
        ((4000, 3000), (500, 375), (500.0, 375.0)),
        ((2687, 2688), (672, 672), (671.75, 672.0)),
        ((2001, 1501), (501, 376), (500.25, 375.25)),
        ((671, 5000), (671, 5000), (671, 5000)),
    ],
)
def test_fast_decoding_shrinks_a_large_jpeg_to_no_less_than_one_and_a_half_inputs(
    size: tuple[int, int],
    comes_as: tuple[int, int],
    extent: tuple[float, float],
    reader: ImageReader,
) -> None:
    image = blob(reader, encoded(PHOTO.resize(size), "JPEG"), near=224)
    assert image.size == comes_as
    assert extent_of(image) == extent


def test_who_decodes_is_known_to_hold_a_core(
    reader: ImageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(decoding, "decode", lambda *_, **__: seen.append(bool(CLAIMS)))
    blob(reader, b"a picture")
    assert seen == [True]
    assert not CLAIMS


def test_the_extent_of_a_picture_is_ours_to_say(reader: ImageReader) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("clipyard_extent", "all of it")
    assert extent_of(blob(reader, encoded(PHOTO, "PNG", pnginfo=notes))) == PHOTO.size


def test_exact_decoding_and_an_unknown_input_size_leave_the_picture_whole(
    reader: ImageReader,
) -> None:
    large = encoded(PHOTO.resize((2000, 1500)), "JPEG")
    assert blob(reader, large, near=None).size == (2000, 1500)
    assert blob(ImageReader(WorkerSettings.read(decode="exact")), large).size == (2000, 1500)


def test_a_small_jpeg_has_the_same_pixels_in_both_modes(reader: ImageReader) -> None:
    content = encoded(PHOTO, "JPEG")
    exact = ImageReader(WorkerSettings.read(decode="exact"))
    assert np.array_equal(np.asarray(blob(reader, content)), np.asarray(blob(exact, content)))
