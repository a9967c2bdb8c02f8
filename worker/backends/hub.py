"""Weights from a model hub: those that are here already, and the rest if the hub can be reached."""

import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from open_clip import pretrained

from api_client.wire.errors import WeightsUnavailable, first_line

PATIENCE_S = 4.0  # the hub's own client tries for 24 s, twice
PUT_WEIGHTS = "put <architecture>/<tag>.safetensors under CLIPYARD_MODELS_DIR"
NAME_CONFIG = "name as `architecture` an open_clip config that finds them on this machine"
_QUERY = re.compile(r"\?[^\s'\"]+")  # of an address, which may hold a signature
FORBIDDEN = constants.HF_HUB_OFFLINE  # by the environment


def fetch(name: str, source: Mapping[str, Any], cache_dir: Path, *, offline: bool) -> Path:
    """The file that an entry of open_clip's registry means, downloaded if need be.

    Args:
        name: of the model, for sentences.
        source: the registry's entry, with `hf_hub` or `url`.

    Raises:
        WeightsUnavailable: within `PATIENCE_S` if nobody answers.
    """
    if (here := cached(source, cache_dir)) is not None:
        return here
    require(f"the weights of {name}", address(source), offline=offline)
    try:
        return Path(pretrained.download_pretrained(dict(source), cache_dir=str(cache_dir)))
    except Exception as error:  # whatever HTTP clients raise
        why = plain(first_line(error))
        raise WeightsUnavailable(f"the weights of {name} could not be fetched: {why}") from error


def plain(told: str) -> str:
    """What an HTTP client says, without the queries of addresses."""
    return _QUERY.sub("", told)


def cached(source: Mapping[str, Any], cache_dir: Path) -> Path | None:
    """The file of a registry entry, if an earlier download left it here."""
    if not (address := source.get("hf_hub")):
        file = cache_dir / os.path.basename(source.get("url", ""))
        return file if file.is_file() else None
    repository, name = os.path.split(address)
    name = name or pretrained.HF_WEIGHTS_NAME
    for candidate in (*pretrained._get_safe_alternatives(name), name):
        found = huggingface_hub.try_to_load_from_cache(
            repository, candidate, cache_dir=str(cache_dir)
        )
        if isinstance(found, str):
            return Path(found)
    return None


def snapshot(repository: str, cache_dir: Path, *, revision: str | None) -> Path:
    """Where the files of a repository are that an earlier download left here; None is its main."""
    found = huggingface_hub.snapshot_download(
        repository, revision=revision, cache_dir=str(cache_dir), local_files_only=True
    )
    return Path(found)


def address(source: Mapping[str, Any]) -> str:
    """Whom open_clip would ask for a registry entry."""
    return str(constants.ENDPOINT if source.get("hf_hub") else source.get("url", ""))


def require(what: str, url: str, *, offline: bool, hint: str = PUT_WEIGHTS) -> None:
    """Refuse in seconds what could only be had from a hub that cannot be asked.

    Args:
        hint: what would do without it.

    Raises:
        WeightsUnavailable
    """
    if offline:
        raise WeightsUnavailable(f"{what} are not on this machine and offline is set; {hint}")
    if not url:
        raise WeightsUnavailable(f"{what} are not on this machine and no hub has them; {hint}")
    if not _answers(url):
        host = urllib.parse.urlsplit(url).hostname
        raise WeightsUnavailable(f"{what} are to come from {host}, which is away; {hint}")


@contextmanager
def away() -> Iterator[None]:
    """Hugging Face's client takes what it has, where it would ask for 24 s for each file.

    No longer than for the block: others in this process ask the hub for what is theirs.
    """
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = FORBIDDEN


def _answers(url: str) -> bool:
    """Whether anybody answers, be it with a refusal. Name servers may be slow, hence the thread."""
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=PATIENCE_S).close()
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            return
        answered.set()

    asking = threading.Thread(target=ask, name="ask-hub", daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    return answered.is_set()
