"""What a stack on a person's own machine gives its workers."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..wire.settings import LocalPath, Settings

# Nobody but its owner can reach a private stack: what the owner may read may be embedded, and jobs
# may write and reach what the owner may. A Redis that was named others may reach, too.
ANYWHERE = {
    "CLIPYARD_IMAGE_ROOTS": '["/"]',
    "CLIPYARD_SINK_ROOTS": '["/"]',
    "CLIPYARD_SINK_ADDRESSES": '["*"]',
}


class StackSettings(Settings):
    """What the stack decides for its workers; anything else they read for themselves."""

    image_roots: tuple[LocalPath, ...] | None = None
    sink_roots: tuple[LocalPath, ...] | None = None
    sink_addresses: tuple[str, ...] | None = None
    # Workers stand in the checkout: what is relative is meant to be so to where we do.
    catalogue: LocalPath | None = None
    models_dir: LocalPath | None = None
    cache_dir: LocalPath | None = None
    jobs_dir: LocalPath | None = None
    log_dir: LocalPath | None = None
    default_model: str | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0  # of the first worker
    # As CUDA itself reads it: empty is no GPU, where for other settings it is as good as not set.
    cuda_visible_devices: str | None = Field(
        default_factory=lambda: os.environ.get("CUDA_VISIBLE_DEVICES")
    )

    def for_workers(self) -> dict[str, str]:
        """These settings, as the environment of a worker."""
        given = {
            "CLIPYARD_IMAGE_ROOTS": _paths(self.image_roots),
            "CLIPYARD_SINK_ROOTS": _paths(self.sink_roots),
            "CLIPYARD_SINK_ADDRESSES": _json(self.sink_addresses),
            "CLIPYARD_CATALOGUE": _path(self.catalogue),
            "CLIPYARD_MODELS_DIR": _path(self.models_dir),
            "CLIPYARD_CACHE_DIR": _path(self.cache_dir),
            "CLIPYARD_JOBS_DIR": _path(self.jobs_dir),
            "CLIPYARD_LOG_DIR": _path(self.log_dir),
            "CLIPYARD_DEFAULT_MODEL": self.default_model,
            "CUDA_VISIBLE_DEVICES": self.cuda_visible_devices,
        }
        unless_given = ANYWHERE if self.redis_url is None else {}
        return unless_given | {name: value for name, value in given.items() if value}


def _paths(roots: tuple[Path, ...] | None) -> str | None:
    return None if roots is None else _json([_path(root) for root in roots])


def _json(values: Sequence[object] | None) -> str | None:
    return None if values is None else json.dumps(values)


def _path(path: Path | None) -> str | None:
    return str(path.absolute()) if path else None
