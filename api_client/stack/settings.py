"""What a stack on a person's own machine gives its workers."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..wire.settings import Settings


class StackSettings(Settings):
    """What the stack decides for its workers; anything else they read for themselves."""

    # Nobody but its owner can reach a private stack, so what the owner may read may be embedded.
    image_roots: tuple[Path, ...] = (Path("/"),)
    default_model: str | None = None
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0  # of the first worker
    cuda_visible_devices: str | None = None  # as CUDA itself reads it

    def for_workers(self) -> dict[str, str]:
        """These settings, as the environment of a worker."""
        roots = json.dumps([str(root.expanduser().absolute()) for root in self.image_roots])
        env = {"CLIPYARD_IMAGE_ROOTS": roots}
        return env | ({"CLIPYARD_DEFAULT_MODEL": self.default_model} if self.default_model else {})
