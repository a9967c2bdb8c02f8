"""What a stack on a person's own machine gives its workers."""

import json
import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..wire.settings import Settings


class StackSettings(Settings):
    """What the stack decides for its workers; anything else they read for themselves."""

    # Nobody but its owner can reach a private stack: what the owner may read may be embedded, and
    # jobs may write and reach what the owner may.
    image_roots: tuple[Path, ...] = (Path("/"),)
    sink_roots: tuple[Path, ...] = (Path("/"),)
    sink_addresses: tuple[str, ...] = ("*",)
    # Workers stand in the checkout: what is relative is meant to be so to where we do.
    catalogue: Path | None = None
    models_dir: Path | None = None
    cache_dir: Path | None = None
    jobs_dir: Path | None = None
    log_dir: Path | None = None
    default_model: str | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0  # of the first worker
    # As CUDA itself reads it: empty is no GPU, where for other settings it is as good as not set.
    cuda_visible_devices: str | None = Field(
        default_factory=lambda: os.environ.get("CUDA_VISIBLE_DEVICES")
    )

    def for_workers(self) -> dict[str, str]:
        """These settings, as the environment of a worker."""
        env = {
            "CLIPYARD_IMAGE_ROOTS": _paths(self.image_roots),
            "CLIPYARD_SINK_ROOTS": _paths(self.sink_roots),
            "CLIPYARD_SINK_ADDRESSES": json.dumps(self.sink_addresses),
        }
        given = {
            "CLIPYARD_CATALOGUE": _path(self.catalogue),
            "CLIPYARD_MODELS_DIR": _path(self.models_dir),
            "CLIPYARD_CACHE_DIR": _path(self.cache_dir),
            "CLIPYARD_JOBS_DIR": _path(self.jobs_dir),
            "CLIPYARD_LOG_DIR": _path(self.log_dir),
            "CLIPYARD_DEFAULT_MODEL": self.default_model,
            "CUDA_VISIBLE_DEVICES": self.cuda_visible_devices,
        }
        return env | {name: value for name, value in given.items() if value}


def _paths(roots: tuple[Path, ...]) -> str:
    return json.dumps([_path(root) for root in roots])


def _path(path: Path | None) -> str | None:
    return str(path.expanduser().absolute()) if path else None
