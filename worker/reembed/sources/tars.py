"""Tar shards as webdataset lays them out: files that share a name up to its first dot."""

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from api_client.wire.endings import OPENED, PICTURES
from api_client.wire.errors import JobRefused, StoreDown, some_of
from api_client.wire.jobs import Place

from ..doors import Doors
from ..items import Item
from ..plugins import options_of
from . import Content
from .folder import MAGIC, matching, split
from .refs import content, member

META_BYTES = 64 * 1024  # of a caption or a JSON file beside a picture
MOST_SHARDS = 10**6  # of a run; their names are held in memory
READ_AT_ONCE = 2**20
HEADER, HEADER_AT = b"ustar", 257  # in the first block of a member


class Tars:
    """Pictures in the shards that `where` names: a glob, or `shard-{00000..00099}.tar`.

    Ids are `<shard>/<name>`, without the ending; of shards that have their name in common, by their
    paths below the folder that `where` begins with. A `.txt` beside a picture becomes `caption`,
    the fields of a `.json` become metadata. Of a sample that has a picture by its key, as `7.jpg`,
    no other one is meant; else all are, as `7.left.jpg`, or `2024.01.jpg` of who knew of no keys. A
    picture is read by its place in the shard, without the members before it.
    """

    def __init__(self, place: Place, doors: Doors) -> None:
        options_of(place)
        self._shards = _named(*_expand(place.where, doors), doors)
        self._where = place.where
        self._doors = doors

    def walk(self) -> Iterator[Item]:
        if not self._shards:
            raise JobRefused(f"there is no shard {self._where!r} on this worker")
        for number, (shard, name) in enumerate(self._shards, start=1):
            try:
                with tarfile.open(shard, "r:") as tar:
                    for item in _samples(shard, tar):
                        yield item._replace(id=f"{name}/{item.id}")
                    _refuse_rest(tar)
            except FileNotFoundError:
                raise JobRefused(f"there is no shard {str(shard)!r} on this worker") from None
            except IsADirectoryError:
                raise JobRefused(
                    f"{str(shard)!r} is a folder; name its shards, as {str(shard / '*.tar')!r}, or "
                    f"say folder:{shard} if it holds pictures"
                ) from None
            except (tarfile.TarError, ValueError) as error:  # of an extended header, too
                more = _cut(file for file, _ in self._shards[number:])
                raise JobRefused(
                    f"{shard} is no whole, uncompressed tar file: {error}{more}"
                ) from None
            except OSError as error:
                raise StoreDown(f"{shard}: {error.strerror}") from error

    def fetch(self, item: Item) -> Content:
        return content(item.ref, self._doors)


def _named(base: Path, shards: Sequence[Path], doors: Doors) -> list[tuple[Path, str]]:
    """Each with its name in ids."""
    read = [doors.reading(str(shard)) for shard in shards]
    times = Counter(file.stem for file in read)
    return [
        (file, file.stem if times[file.stem] == 1 else str(shard.relative_to(base).with_suffix("")))
        for file, shard in zip(read, shards, strict=True)
    ]


def _expand(where: str, doors: Doors) -> tuple[Path, list[Path]]:
    """The folder that they all lie below, and the shards."""
    if run := re.search(r"\{(\d+)\.\.(\d+)\}", where):
        first, last = run[1], run[2]
        if int(last) - int(first) >= MOST_SHARDS:
            raise JobRefused(f"{run[0]} is more than {MOST_SHARDS} shards; name fewer")
        numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
        before, behind = where[: run.start()], where[run.end() :]
        return Path(f"{before}0").parent, [Path(before + n + behind) for n in numbers]
    if not MAGIC & set(where) or os.path.isfile(where):
        return Path(where).parent, [Path(where)]
    folder, pattern = split(where)
    base, meant = doors.reading(folder), matching(pattern)
    return base, sorted(p for p in base.rglob("*.tar") if meant(str(p.relative_to(base))))


def _samples(shard: Path, tar: tarfile.TarFile) -> Iterator[Item]:
    """Members with one key follow each other; a sample ends where the key changes."""
    key, members = "", dict[str, tarfile.TarInfo]()
    for file in tar:
        tar.members = []  # type: ignore[attr-defined]  # it would remember every member
        if not file.isfile():
            continue
        folder, slash, name = file.name.rpartition("/")
        stem, _, ending = name.partition(".")
        found = f"{folder}{slash}{stem}"
        if not stem:  # hidden, as what macOS puts beside each file
            continue
        if found != key:
            yield from _pictures(shard, members, tar)
            key, members = found, {}
        members[f".{ending.lower()}"] = file
    yield from _pictures(shard, members, tar)


def _refuse_rest(tar: tarfile.TarFile) -> None:
    """A header that is broken or cut ends the walk like the end of the file, which is zeros; so
    does a cut between two members, which leaves none, and the end of the first of several files
    that were joined."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if (found := tar.fileobj.read(tarfile.BLOCKSIZE)).strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {tar.offset} is broken")
    if not found:
        raise tarfile.ReadError(
            "the zeros at its end are missing, as of one that was cut or is being written; a whole "
            "one gets them by `truncate -s +1024`"
        )
    if any(
        block[at : at + len(HEADER)] == HEADER  # anything else may be left over in a last record
        for block in iter(partial(tar.fileobj.read, READ_AT_ONCE), b"")
        for at in range(HEADER_AT, len(block), tarfile.BLOCKSIZE)
    ):
        raise tarfile.ReadError(
            f"it ends at byte {tar.offset}, and more follows, as where `cat` has joined several: "
            "name these, or join them by `tar --concatenate` of GNU tar, one at a time"
        )


def _cut(shards: Iterable[Path]) -> str:
    """Which of the shards that follow are cut as well, so that nobody mends a thousand one by one;
    the end of each is looked at."""
    cut = [str(shard) for shard in shards if _lacks_zeros(shard)]
    return f"; the zeros that end a tar file are missing in {some_of(cut)}, too" if cut else ""


def _lacks_zeros(shard: Path) -> bool:
    with suppress(OSError), shard.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - tarfile.BLOCKSIZE))
        return file.read() != bytes(tarfile.BLOCKSIZE)
    return False


def _pictures(
    shard: Path, members: dict[str, tarfile.TarInfo], tar: tarfile.TarFile
) -> Iterator[Item]:
    """Of one sample."""
    plain = [ending for ending in members if ending in OPENED][:1]
    for ending in plain or [ending for ending in members if ending.endswith(PICTURES)]:
        picture, inside = members[ending], ending.rpartition(".")[0]
        meta: dict[str, Any] = {}
        if text := members.get(f"{inside}.txt"):
            meta["caption"] = _small(tar, text).decode(errors="replace")
        if fields := members.get(f"{inside}.json"):
            try:
                meta |= json.loads(_small(tar, fields) or b"{}")
            except (ValueError, TypeError, RecursionError):
                raise JobRefused(f"{shard}: {fields.name} is no JSON object") from None
        yield Item(
            id=picture.name.rpartition(".")[0],
            ref=member(shard, picture.name, begin=picture.offset_data, length=picture.size),
            meta=meta,
        )


def _small(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read(META_BYTES) if file and member.size <= META_BYTES else b""
