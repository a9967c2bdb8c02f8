import errno
import re
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from api_client.wire.errors import (
    BadSettings,
    ImageForbidden,
    ImageMissing,
    ImageTooLarge,
    ImageUnreachable,
)
from worker.datapath.stores import Stores
from worker.settings import WorkerSettings

PREFIX = "memory://bucket/pictures/"


@pytest.fixture
def stores() -> Stores:
    objects = fsspec.filesystem("memory")
    for name in ("pictures/a.png", "pictures-private/a.png", "secret.png"):
        objects.pipe_file(f"bucket/{name}", b"x" * 50)
    return Stores([PREFIX], max_bytes=50)


def test_an_object_below_a_prefix_comes_as_its_bytes(stores: Stores) -> None:
    assert stores.read(f"{PREFIX}a.png") == b"x" * 50


@pytest.mark.parametrize(
    "url",
    [
        "memory://bucket/secret.png",
        "memory://bucket/pictures-private/a.png",
        f"simplecache::{PREFIX}a.png",
        "file:///etc/passwd",
        "local:///etc/passwd",
        "s3://bucket/pictures/a.png",
        "nonsense",
    ],
)
def test_nothing_else_is_asked_for(stores: Stores, url: str) -> None:
    with pytest.raises(ImageForbidden, match="outside the image stores"):
        stores.read(url)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "%2e%2e/secret.png",
        "..\\secret.png",
        "a.png::file:///etc/passwd",
        "a::b.png",
        "a\0.png",
    ],
)
def test_an_object_whose_name_could_lead_elsewhere_is_not_asked_for(
    stores: Stores, name: str
) -> None:
    with pytest.raises(ImageForbidden, match="could lead elsewhere: give the object a plain name"):
        stores.read(f"{PREFIX}{name}")


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("file:///photos/a.png", "; pass the path of a file alone"),
        ("FILE:///photos/a.png", "; pass the path of a file alone"),
        ("s3://bucket/a.png", ""),
    ],
)
def test_a_file_that_is_named_by_a_url_is_to_be_named_by_its_path(
    stores: Stores, url: str, hint: str
) -> None:
    told = re.escape(f"'{url}' is outside the image stores ({PREFIX}){hint}")
    with pytest.raises(ImageForbidden, match=f"^{told}$"):
        stores.read(url)


def test_where_no_store_is_open_the_refusal_names_the_setting() -> None:
    with pytest.raises(ImageForbidden, match=r"\(none; set CLIPYARD_IMAGE_STORES\)"):
        Stores([], max_bytes=50).read(f"{PREFIX}a.png")


def test_of_a_long_url_both_ends_are_shown(stores: Stores) -> None:
    url = f"s3://bucket/{'folder/' * 100}picture.png"
    with pytest.raises(
        ImageForbidden, match=r"'s3://bucket/folder/.*\.\.\..*picture\.png'"
    ) as refused:
        stores.read(url)
    assert len(str(refused.value)) < 300


def test_a_store_is_bounded_and_says_what_is_missing(stores: Stores) -> None:
    with pytest.raises(ImageMissing):
        stores.read(f"{PREFIX}none.png")
    with pytest.raises(ImageTooLarge):
        Stores([PREFIX], max_bytes=49).read(f"{PREFIX}a.png")
    with pytest.raises(ImageUnreachable):
        Stores(["nosuchprotocol://bucket/"], max_bytes=1).read("nosuchprotocol://bucket/a")


class AsS3(MemoryFileSystem):
    """Of what is empty it has no range, as S3 and Google's storage."""

    asked: ClassVar[list[str]] = []

    def cat_file(self, path: str, start: int = 0, end: int | None = None, **_: Any) -> bytes:
        self.asked.append("GET")
        data: bytes = super().cat_file(path, start=start, end=end)
        if start >= len(super().cat_file(path)):
            raise OSError(errno.EINVAL, "The requested range is not satisfiable")
        return data

    def info(self, path: str, **_: Any) -> Any:
        self.asked.append("HEAD")
        return super().info(path)


def test_a_store_is_asked_once_for_an_object(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AsS3, "asked", [])
    fsspec.register_implementation("as-s3", AsS3, clobber=True)
    bucket = Stores(["as-s3://bucket/"], max_bytes=49)
    with pytest.raises(ImageTooLarge):
        bucket.read("as-s3://bucket/pictures/a.png")
    assert AsS3.asked == ["GET"]
    AsS3().pipe_file("bucket/empty.png", b"")
    assert bucket.read("as-s3://bucket/empty.png") == b""
    with pytest.raises(ImageMissing):
        bucket.read("as-s3://bucket/none.png")


def test_an_object_that_the_store_does_not_give_to_this_worker_is_forbidden(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(ImageForbidden, match="the worker may not read"):
        stores.read(f"{PREFIX}a.png")


def test_a_driver_that_is_not_installed_is_named() -> None:
    fsspec.register_implementation("driverless", "no_such_module.Files", errtxt="Install a driver")
    with pytest.raises(ImageUnreachable, match="on this worker: Install a driver"):
        Stores(["driverless://bucket/"], max_bytes=1).read("driverless://bucket/a")


@pytest.mark.parametrize(
    "store",
    [
        *("file:///srv/", "local://srv/", "http://a/", "s3://", "s3", "/srv"),
        *("simplecache::s3://b/", "zip://a.zip/", "tar://a.tar/"),
    ],
)
def test_a_prefix_that_opens_a_side_door_or_nothing_is_refused(store: str) -> None:
    with pytest.raises(BadSettings, match="CLIPYARD_IMAGE_STORES"):
        WorkerSettings.read(image_stores=(store,))


@pytest.mark.parametrize("setting", ["image_stores", "sink_addresses"])
@pytest.mark.parametrize(
    "prefix", ["s3://key:canary@b/", "pg://u:can/ary@h/db", "pg://h/db?sslmode=off&password=canary"]
)
def test_a_prefix_with_a_password_is_refused_and_not_shown(setting: str, prefix: str) -> None:
    with pytest.raises(BadSettings, match="a password in it would be shown") as refused:
        WorkerSettings.read(**{setting: (prefix, "s3://b:80/")})
    assert "ary" not in str(refused.value)
    assert "s3://b:80/" in str(refused.value)


def test_a_prefix_ends_at_a_folder() -> None:
    assert WorkerSettings.read(image_stores=("s3://b/pictures",)).image_stores == (
        "s3://b/pictures/",
    )
