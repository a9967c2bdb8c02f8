"""A client in a process of its own: submits what is ordered, for others to fetch.

python -m tests.chaos.elsewhere FOLDER

An order is a file. It lies there until the id of what was submitted lies beside it: what a client
that was killed had not come to, or not told of, the next one submits.
"""

import json
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from api_client import Client
from api_client.results import Item
from api_client.wire.errors import NoAnswer, NoBroker, NoWorker

LOOK_S = 0.05


def main() -> None:
    with Client(asked_by="chaos") as client:
        while True:
            with suppress(NoBroker):
                fill(Path(sys.argv[1]), client)
            time.sleep(LOOK_S)


def fill(folder: Path, client: Client) -> None:
    """Submit what is ordered: texts, or the pictures in files, by value."""
    for order in folder.glob("*.order"):
        wanted = json.loads(order.read_text())
        options = wanted["options"]
        # The clock here may be an hour behind: it would be late at once.
        options["timeout"] = max(options["timeout"], wanted["until"] - time.time())
        if "texts" in wanted:
            handle = client.submit_texts(wanted["texts"], **options)
        else:
            data = [Path(path).read_bytes() for path in wanted["pictures"]]
            handle = client.submit_images(data, **options)
        _put(order.with_suffix(".id"), handle.id)
        order.unlink()


def submitted(
    folder: Path,
    kind: str,
    contents: Iterable[str | Path],
    *,
    within_s: float,
    timeout: float,
    **options: Any,
) -> str:
    """The id of what the client process submits, which may take until it is started again.

    Args:
        kind: texts or pictures.
        timeout: seconds, by the clock here.

    Raises:
        NoAnswer: it has not done so.
    """
    order = folder / f"{uuid4()}.order"
    wanted = {
        kind: [*map(str, contents)],
        "options": {"timeout": timeout, **options},
        "until": time.time() + timeout,
    }
    _put(order, json.dumps(wanted))
    told, until = order.with_suffix(".id"), time.monotonic() + within_s
    while not told.exists():
        if time.monotonic() > until:
            raise NoAnswer(f"{order.name} is not submitted after {within_s:g} s")
        time.sleep(LOOK_S)
    return told.read_text()


def fetched(client: Client, id: str, *, within_s: float) -> list[Item]:
    """What another process submitted; looked for again where Redis or the workers are away."""
    until = time.monotonic() + within_s
    while True:
        left_s = max(LOOK_S, until - time.monotonic())
        try:
            return client.handle(id).wait(left_s)
        except (NoBroker, NoWorker):
            if left_s == LOOK_S:
                raise
        time.sleep(LOOK_S)


def _put(file: Path, text: str) -> None:
    """In one step."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(file)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # what is half sent, withdrawn
    main()
