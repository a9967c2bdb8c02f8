"""The device's knobs: which device, how many models, how long they stay, what may be opened."""

import json
import re
import sys
from typing import Annotated, Literal

from pydantic import Field, field_validator

from api_client.wire.errors import BadSettings
from api_client.wire.logs import LogSettings
from api_client.wire.messages import Seconds
from api_client.wire.settings import PASSWORDS, LocalPath, default_home

from . import processors

# Protocols of fsspec that lead to this machine's own files, past the guard of the web, or into an
# archive that no address could name.
NOT_STORES = {"file", "local", "http", "https", "zip", "tar", "libarchive"}

# What is larger is a mistake, and no machine could count with it.
Count = Annotated[int, Field(ge=1, le=2**40)]
Limit = Annotated[float, Field(gt=0, le=1e6)]


class WorkerSettings(LogSettings):
    """What one worker process needs to know beside `LogSettings`."""

    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    decode: Literal["fast", "exact"] = "fast"  # fast lets the JPEG decoder scale; see docs
    gpu_memory_threshold_gb: Annotated[float, Field(ge=0)] = 4.0  # free, for auto to pick a GPU
    fallback_to_cpu: bool = True

    metrics_host: str = "127.0.0.1"  # anyone who can reach it can read the metrics
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0  # 0: no metrics
    task_events: bool = False  # tell Flower of every task; costs a tenth of the smallest ones' rate

    default_model: Annotated[str, Field(min_length=1, max_length=200)] = "ViT-L-14/openai"
    catalogue: LocalPath | None = None  # a person's own entries, TOML
    backends: tuple[str, ...] = ()  # plug-ins allowed: an entry point, or name=module:Class
    models_dir: LocalPath | None = None  # <architecture>/<tag>.safetensors, before any download
    cache_dir: LocalPath = Field(default_factory=lambda: default_home() / "cache")
    offline: bool = False  # never ask a model hub

    slots: Count = 2  # models on the device at once
    device_memory_gb: Limit | None = None  # for weights; None: measured
    headroom: Annotated[float, Field(ge=0, lt=1)] = 0.2  # of what is free, beside other models
    host_memory_gb: Annotated[float, Field(ge=0, le=1e6)] | None = None  # at rest; None: any
    slot_wait_s: Annotated[float, Field(ge=0)] = 30.0  # for a place; then the model is busy
    min_residency_s: Annotated[float, Field(ge=0)] = 0.0  # against thrash: a lifted model may stay
    recycle_residue_gb: Annotated[float, Field(gt=0)] | None = None  # see docs; None: never end
    wedged_after_s: Annotated[float, Field(gt=0)] = 180.0  # a forward pass; then the worker ends
    keep_models: bool = True  # False: a model goes as soon as nobody uses it
    vision_vram_timeout_s: Seconds = 600.0
    vision_ram_timeout_s: Seconds = 1800.0
    text_vram_timeout_s: Seconds = 600.0
    text_ram_timeout_s: Seconds = 1800.0
    pressure_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    pressure_timeout_s: Seconds = 60.0
    pinned: tuple[str, ...] = ()  # models that no sweep and no eviction moves
    preload: tuple[str, ...] = ()  # models to bring onto the device when the worker starts
    adaptive_timeouts: bool = False  # outlast each model's own pauses
    adaptive_timeouts_most: Annotated[float, Field(ge=1)] = 3.0  # times the timeouts, no longer
    foresight: bool = True  # an idle worker brings what is mostly asked for at this hour
    resume: bool = False  # take up the current model and the run-time settings of the predecessor

    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32  # the most that one forward takes
    decode_threads: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=processors.decode_threads
    )
    # Of strangers' pictures; 0: of the few kinds that `decoding.needs_process` names.
    decode_processes: Annotated[int, Field(ge=0, le=256)] = 0
    decode_timeout_s: Limit = 30.0  # for one picture in such a process
    content_cache_mb: Annotated[float, Field(ge=0, le=1e9)] = 0.0  # of Redis, for known pictures
    image_roots: tuple[LocalPath, ...] = ()  # pictures may be opened below these, and nowhere else
    image_urls: bool = False  # fetch http(s) pictures, from public addresses only
    image_url_hosts: tuple[str, ...] = ()  # and of these hosts only; .example.org: all below it
    image_url_timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    image_stores: tuple[str, ...] = ()  # object stores, by prefix: s3://bucket/pictures/
    sink_roots: tuple[LocalPath, ...] = ()  # jobs may write below these, and nowhere else
    sink_addresses: tuple[str, ...] = ()  # databases, by prefix: http://qdrant:6333/
    jobs_dir: LocalPath = Field(default_factory=lambda: default_home() / "jobs")  # of all workers
    job_lease_s: Limit = 60.0  # after so much silence, a chunk is free
    max_image_bytes: Count = 64 * 2**20
    max_image_pixels: Count = 250_000_000

    @field_validator("device")
    @classmethod
    def _a_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", device):
            raise ValueError("use auto, cpu, cuda, cuda:N or mps")
        return device

    @field_validator("image_stores", "sink_addresses")
    @classmethod
    def _shown_to_whom_they_refuse(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        if any(map(PASSWORDS.search, prefixes)):
            raise ValueError(
                "a password in it would be shown to whoever asks for another address; give it "
                "to the driver instead: FSSPEC_S3_SECRET, PGPASSWORD, QDRANT_API_KEY or the like"
            )
        return prefixes

    @field_validator("image_stores")
    @classmethod
    def _prefixes(cls, stores: tuple[str, ...]) -> tuple[str, ...]:
        for store in stores:
            protocol, found, bucket = store.partition("://")
            if not found or not bucket.strip("/") or protocol in NOT_STORES or "::" in store:
                raise ValueError(
                    f"{store!r} is no prefix like s3://bucket/folder/; folders of this machine, "
                    "with what archives hold unpacked, go into CLIPYARD_IMAGE_ROOTS, web addresses "
                    "into CLIPYARD_IMAGE_URLS"
                )
        return tuple(store if store.endswith("/") else f"{store}/" for store in stores)


def main() -> None:
    """Print every setting as JSON, for `clipyard doctor`."""
    try:
        print(json.dumps(WorkerSettings.read().rows()))
    except BadSettings as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
