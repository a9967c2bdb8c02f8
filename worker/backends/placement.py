"""Which device this process runs its models on, and in which precision."""

import logging
import os
from collections.abc import Mapping

import torch

from api_client.wire.errors import BadSettings, first_line

from ..settings import WorkerSettings
from .base import Placement, Precision

log = logging.getLogger(__name__)

GB = 1_000_000_000


def resolve(settings: WorkerSettings) -> Placement:
    """The settings with every `auto` decided. To be asked before anything is computed.

    Raises:
        BadSettings: the device cannot be used, or is not here and `fallback_to_cpu` is off.
    """
    name_kernels()
    device = _device(settings)
    precision = settings.precision
    return Placement(
        device=device,
        precision=best_precision(device) if precision == "auto" else precision,
        decode=settings.decode,
        models_dir=settings.models_dir,
        cache_dir=settings.cache_dir,
        offline=settings.offline,
    )


def name_kernels() -> None:
    """Tell oneMKL, which reads it at its first use, which kernels to take where it chooses badly.

    Somebody's own choice in the environment stays.
    """
    if branch := mkl_branch(torch.cpu.get_capabilities()):
        os.environ.setdefault("MKL_CBWR", branch)


def mkl_branch(processor: Mapping[str, object]) -> str | None:
    """oneMKL's name for the kernels of a processor, as torch describes it; None leaves it alone.

    On AMD's without AVX-512 those it takes unasked need half as long again for the few rows of a
    text (docs/why.md, "Which kernels compute a text in float32").
    """
    is_amd = str(processor.get("cpu_name", "")).startswith("AMD")
    plain = processor.get("avx2") and not processor.get("avx512_f")
    return "AVX2" if is_amd and plain else None


def best_precision(device: str) -> Precision:
    """What the hardware computes fastest while staying true to float32 (cosine 0.999 and more).

    float16 on GPUs with tensor cores: three more bits than bfloat16 at the same speed.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        can = torch.cpu.get_capabilities()
        return "bfloat16" if can.get("avx512_bf16") or can.get("amx_bf16") else "float32"
    if kind == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0):
        return "float16"
    return "float32"


def _device(settings: WorkerSettings) -> str:
    wanted = "cuda:0" if settings.device == "cuda" else settings.device
    if wanted == "auto":
        return _roomy_gpu(settings.gpu_memory_threshold_gb) or _other()
    if _is_here(wanted):
        if wanted.startswith("cuda") and (trouble := _trouble(wanted)):
            raise BadSettings(f"CLIPYARD_DEVICE: {trouble}; free it and start again, or use auto")
        return wanted
    if settings.fallback_to_cpu:
        log.warning("device %s is not here; using the CPU", wanted)
        return "cpu"
    raise BadSettings(
        f"CLIPYARD_DEVICE: {wanted} is not here (torch {torch.__version__} sees "
        f"{torch.cuda.device_count()} CUDA devices); use auto, or allow CLIPYARD_FALLBACK_TO_CPU"
    )


def _roomy_gpu(needed_gb: float) -> str | None:
    for index in range(torch.cuda.device_count()):
        if not (trouble := _trouble(f"cuda:{index}", needed_gb=needed_gb)):
            return f"cuda:{index}"
        log.warning(trouble)
    return None


def _other() -> str:
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _is_here(device: str) -> bool:
    kind, _, index = device.partition(":")
    match kind:
        case "cpu":
            return True
        case "mps":
            return torch.backends.mps.is_available()
        case _:
            return int(index) < torch.cuda.device_count()


def _trouble(gpu: str, *, needed_gb: float = 0.0) -> str:
    """Why nothing can run there now; empty if something can."""
    try:
        free, _ = torch.cuda.mem_get_info(gpu)
    except RuntimeError as error:  # full to the brim, broken, or another process' alone
        return f"{gpu} cannot be used: {first_line(error)}"
    if free < needed_gb * GB:
        return f"{gpu} has {free / GB:.1f} GB free, {needed_gb:.1f} are asked for"
    return ""
