"""Which devices this machine shows to a worker, found without importing torch."""

import re
import shutil
import subprocess
from itertools import takewhile

CPU = "cpu"
NAMES_A_GPU = re.compile(r"\d|GPU-|MIG-")


def visible_devices(*, cuda_visible: str | None) -> tuple[str, ...]:
    """The devices that deserve a worker each; the CPU when there is no GPU.

    Args:
        cuda_visible: CUDA_VISIBLE_DEVICES as it is set, None if it is not.
    """
    if not shutil.which("nvidia-smi"):
        return (CPU,)
    listing = subprocess.run(("nvidia-smi", "-L"), capture_output=True, text=True, check=False)
    return devices_in(listing.stdout, cuda_visible=cuda_visible)


def devices_in(listing: str, *, cuda_visible: str | None) -> tuple[str, ...]:
    """The devices in what `nvidia-smi -L` prints.

    CUDA numbers what is visible from zero, and stops reading its variable at what names no GPU: a
    negative number, nothing, any other word.
    """
    gpus = len(re.findall(r"^GPU \d+:", listing, re.MULTILINE))
    if cuda_visible is not None:
        shown = map(str.strip, cuda_visible.split(","))
        gpus = min(gpus, len(list(takewhile(NAMES_A_GPU.match, shown))))
    return tuple(f"cuda:{n}" for n in range(gpus)) or (CPU,)
