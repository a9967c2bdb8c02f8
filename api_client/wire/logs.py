"""How a process of ours logs: for people, or one JSON object a line; a level for each part."""

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from logging.handlers import WatchedFileHandler
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, field_validator
from pydantic_settings import NoDecode

from . import correlation
from .errors import BadSettings
from .settings import LocalPath, Settings

__all__ = ["ESCAPES", "PARTS", "LogSettings", "part_of", "set_up"]

log = logging.getLogger(__name__)

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

# Each part and the loggers below which it writes; the longest name that fits wins.
PARTS: Mapping[str, tuple[str, ...]] = {
    "slots": ("worker.residency",),
    "sweeps": ("worker.residency.sweeping",),
    "data": ("worker", "worker.delivery.answers"),  # whatever is not told apart
    "jobs": ("worker.reembed",),
    "status": ("worker.tracker", "worker.metrics"),
    "gateway": ("api_client.gateway", "uvicorn"),
    "messages": ("celery", "kombu", "worker.delivery"),
}
OTHER = "other"
# What these log of a request is its whole address, and with it the signature by which a private
# file can be had; and of Ollama's and Qdrant's it would be two lines a forward pass.
ASKING = (
    *("httpx", "httpx2", "httpcore", "httpcore2", "urllib3"),
    *("huggingface_hub.file_download", "huggingface_hub.utils._http"),
)

# For str.translate: what others wrote moves no cursor and tells a terminal nothing.
ESCAPES: Mapping[int, str] = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"
}

_TEXT = "%(asctime)s %(levelname)s %(part)s: %(message)s%(about)s"


def _by_part(value: Any) -> Any:
    """`slots=DEBUG,jobs=WARNING`, or a JSON object in its place."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return json.loads(value)
    pairs = (pair.partition("=") for pair in value.split(",") if pair.strip())
    return {name.strip(): level.strip().upper() for name, _, level in pairs}


class LogSettings(Settings):
    """What a process that can be looked into reads beside `Settings`."""

    log_level: Level = "INFO"
    log_format: Literal["text", "json"] = "text"
    # In the environment: slots=DEBUG,jobs=WARNING.
    log_levels: Annotated[Mapping[str, Level], NoDecode, BeforeValidator(_by_part)] = {}
    log_dir: LocalPath | None = None  # also one file a part, for logrotate to rotate
    traces: bool = False  # spans of OpenTelemetry; OTEL_* say where to, see `spans`

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, level: object) -> object:
        return level.upper() if isinstance(level, str) else level

    @field_validator("log_levels")
    @classmethod
    def _known(cls, levels: Mapping[str, Level]) -> Mapping[str, Level]:
        if unknown := levels.keys() - PARTS:
            raise ValueError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
        return levels


def set_up(settings: LogSettings) -> None:
    """Log to standard error, and to a file for each part if a folder is given.

    Handlers that others have added stay.

    Raises:
        BadSettings: nobody can write into the folder.
    """
    formatter = _JsonLines() if settings.log_format == "json" else _TextLines(_TEXT)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if folder := settings.log_dir:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadSettings(f"CLIPYARD_LOG_DIR: {folder}: {error.strerror}") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise BadSettings(f"CLIPYARD_LOG_DIR: this process may not write into {folder}")
        for part in (*PARTS, OTHER):
            file = _File(folder / f"{part}.log", delay=True)
            file.addFilter(lambda record, part=part: part_of(record.name) == part)  # type: ignore[misc]
            handlers.append(file)
    # Which no line of ours tells; looking them up takes as long as the rest of a line.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    for handler in handlers:
        handler.setFormatter(formatter)
        handler.filters.insert(0, _mark)
        root.addHandler(handler)
    root.setLevel(settings.log_level)
    # Each its own: below `worker` are loggers of other parts, which would inherit its level.
    for part, names in PARTS.items():
        for name in names:
            logging.getLogger(name).setLevel(settings.log_levels.get(part, settings.log_level))
    for name in ASKING:
        logging.getLogger(name).setLevel(logging.ERROR)


@cache
def part_of(logger: str) -> str:
    """The part that a logger writes for."""
    fitting = [
        (len(name), part)
        for part, names in PARTS.items()
        for name in names
        if logger == name or logger.startswith(f"{name}.")
    ]
    return max(fitting, default=(0, OTHER))[1]


def _mark(record: logging.LogRecord) -> bool:
    """In the thread that logs, where the context is still the one of the work."""
    about = correlation.current()
    record.part, record.correlation = part_of(record.name), about
    record.about = f" [{about}]" if about else ""
    return True


class _TextLines(logging.Formatter):
    """For people. What goes on after the first line, a traceback too, is indented."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).translate(ESCAPES).replace("\n", "\n    ")


class _File(WatchedFileHandler):
    """One that cannot be written costs its lines, which standard error has as well, not the work
    that they tell of."""

    _is_lost = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def flush(self) -> None:
        super().flush()
        self._is_lost = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Told once: of each line it would be a traceback, on what may be the same full disk."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._is_lost:
            self._is_lost = True
            log.error("%s cannot be written: %s", self.baseFilename, error.strerror)


class _JsonLines(logging.Formatter):
    """One JSON object a line, whatever the message holds."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "part": part_of(record.name),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if about := getattr(record, "correlation", ""):
            line["correlation"] = about
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
