"""What is wrong around this worker, as far as only its own process can tell."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from api_client.wire.disk import free_bytes, may_write
from api_client.wire.messages import Complaint, ComplaintAbout

from .settings import WorkerSettings

__all__ = ["complaints"]

LEAST_FREE_BYTES = 1_000_000_000  # a checkpoint or two


def complaints(
    settings: WorkerSettings,
    *,
    device: str,
    least_free_bytes: int = LEAST_FREE_BYTES,
    root: Path = Path("/"),
) -> tuple[Complaint, ...]:
    """None when all is well. Asks the file system, so it may hang where that hangs.

    Args:
        device: what the worker runs on.
        root: where the driver's device files lie, under `dev`.
    """
    return (
        *_roots(settings.image_roots),
        *_disk(settings.cache_dir, least_free_bytes),
        *_gpu(device, settings.device, root),
    )


def _roots(roots: Iterable[Path]) -> Iterator[Complaint]:
    for path in roots:
        if not (os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK)):
            yield Complaint(
                about=ComplaintAbout.IMAGE_ROOT,
                found=f"the image root {path} is no folder that this worker can read",
                mend="mount it on the worker's machine, or correct CLIPYARD_IMAGE_ROOTS",
            )


def _disk(folder: Path, least_free_bytes: int) -> Iterator[Complaint]:
    try:
        free = free_bytes(folder)
    except OSError as error:
        yield Complaint(
            about=ComplaintAbout.DISK,
            found=f"{folder} cannot be looked at: {error.strerror}",
            mend="let this worker write there, or correct CLIPYARD_CACHE_DIR",
        )
        return
    if free < least_free_bytes:
        yield Complaint(
            about=ComplaintAbout.DISK,
            found=f"{free / 1e9:.1f} GB free below {folder}",
            mend="make room: prepared checkpoints are kept there (CLIPYARD_CACHE_DIR)",
        )
    elif not may_write(folder):
        yield Complaint(
            about=ComplaintAbout.DISK,
            found=f"{folder} cannot be written to: every load converts its checkpoint again",
            mend="let this worker write there, or correct CLIPYARD_CACHE_DIR",
        )


def _gpu(device: str, asked: str, root: Path) -> Iterator[Complaint]:
    is_there = any(root.glob("dev/nvidia[0-9]*"))
    if device == "cpu" and (is_there if asked == "auto" else asked != "cpu"):
        wanted = "there is an NVIDIA GPU" if asked == "auto" else f"{asked} was asked for"
        yield Complaint(
            about=ComplaintAbout.GPU,
            found=f"{wanted}, and this worker runs on the CPU",
            mend="look at its log; install a torch built for the driver's CUDA, free some of "
            "the GPU's memory, or say CLIPYARD_DEVICE=cpu if that is meant",
        )
