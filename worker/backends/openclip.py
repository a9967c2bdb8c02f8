"""The open_clip family: every architecture of its registry, JSON configs, local checkpoints."""

import ctypes
import json
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import huggingface_hub
import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip import factory, pretrained
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from api_client.wire.errors import BadCheckpoint, ImageTooLarge, WeightsUnavailable
from api_client.wire.messages import Kind

from ..catalogue import Entry
from . import hub, weights
from .base import Footprint, Placement, Prepared, PreparedText, Traits
from .checkpoints import Checkpoints
from .recipes import Recipe, Tokenizer

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pt", ".bin")
MAX_RESIZED_PIXELS = 32_000_000  # of a long strip, before it is cropped to the model's square
ALIGN = 512  # bytes; where a GPU likes its tensors to start
MAX_KNOWN_WORDS = 100_000  # open_clip's tokenizer remembers every word it ever saw


class OpenClip:
    """Turns catalogue entries into open_clip models.

    Weights are mapped, not read: from the checkpoint itself if it has the serving form, else from
    a prepared copy in `placement.cache_dir` (a temporary folder without one).
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._dtype: torch.dtype = getattr(torch, placement.precision)
        if placement.cache_dir is None:
            self._temporary = TemporaryDirectory(prefix="clipyard-")
        self._cache_dir = placement.cache_dir or Path(self._temporary.name)
        self._checkpoints = Checkpoints(self._cache_dir / "prepared")
        if placement.offline:
            huggingface_hub.constants.HF_HUB_OFFLINE = True  # tokenizers have no other switch

    def describe(self, model_id: str) -> Entry | None:
        """An entry for `architecture/tag`, if open_clip or `models_dir` has such weights."""
        architecture, _, tag = model_id.rpartition("/")
        if architecture not in open_clip.list_models():
            return None
        entry = Entry(id=model_id, architecture=architecture, tag=tag)
        if not pretrained.is_pretrained_cfg(architecture, tag) and self._local(entry) is None:
            return None
        recipe = Recipe.of(entry)
        return Entry(
            id=model_id,
            architecture=architecture,
            tag=tag,
            description=f"open_clip's {architecture} with the weights {tag}",
            dimension=recipe.dimension,
            input_size=recipe.input_size,
        )

    def check(self, entry: Entry) -> int:
        """Bytes of the weights; refuses what can be refused without reading them."""
        recipe = Recipe.of(entry)
        model = self._build(recipe)
        source = self._local(entry) or hub.cached(recipe.source, self._hub_dir)
        if source is not None:
            self._usable(source, model)
        elif not recipe.source:
            raise WeightsUnavailable(self._nowhere(entry))
        elif self._placement.offline:
            hub.require(f"the weights of {entry.id}", "", offline=True)
        return _bytes(model)

    def load(self, entry: Entry) -> "OpenClipModel":
        """The model in host memory; its pages come from the file as they are first touched."""
        recipe = Recipe.of(entry)
        model = self._build(recipe)
        source = self._source(entry, recipe)
        if entry.sha256 and self._checkpoints.sha256(source) != entry.sha256.lower():
            raise BadCheckpoint(f"{source} does not have the SHA-256 that {entry.id} asks for")
        tokenizer = recipe.tokenizer(self._hub_dir)
        state, identity = self._state(source, model)
        model.load_state_dict(state, assign=True)
        return OpenClipModel(
            model,
            placement=self._placement,
            preprocessing=recipe.preprocessing(model),
            tokenizer=tokenizer,
            traits=self._traits(recipe, model, identity),
        )

    @property
    def _hub_dir(self) -> Path:
        return self._cache_dir / "hub"

    def _build(self, recipe: Recipe) -> nn.Module:
        if recipe.asks_hub and not self._placement.offline:
            what = f"text files of {recipe.architecture}"
            hub.require(what, huggingface_hub.constants.ENDPOINT, offline=False)
        return recipe.build(self._dtype)

    def _local(self, entry: Entry) -> Path | None:
        """The checkpoint on this machine that the entry names, or the first under models_dir."""
        if entry.checkpoint is not None:
            return entry.checkpoint
        if (folder := self._placement.models_dir) is None or not entry.tag:
            return None
        stem = folder / entry.architecture / entry.tag
        files = (stem.with_name(stem.name + suffix) for suffix in SUFFIXES)
        return next((file for file in files if file.is_file()), None)

    def _source(self, entry: Entry, recipe: Recipe) -> Path:
        if (local := self._local(entry)) is not None:
            return local
        if not recipe.source:
            raise WeightsUnavailable(self._nowhere(entry))
        return hub.fetch(entry.id, recipe.source, self._hub_dir, offline=self._placement.offline)

    def _nowhere(self, entry: Entry) -> str:
        tags = ", ".join(pretrained.list_pretrained_tags_by_model(entry.architecture)) or "none"
        return f"no weights for {entry.id}: give a checkpoint, or one of open_clip's tags ({tags})"

    def _usable(self, source: Path, model: nn.Module) -> weights.State:
        """The tensors of a checkpoint under this model's names.

        Raises:
            LoadFailed: the file is unreadable, or of another architecture.
        """
        state = _adapted(weights.read(source), model)
        if found := weights.differences(model.state_dict(), state):
            raise BadCheckpoint(f"{source} belongs to another architecture: {found}")
        return state

    def _state(self, source: Path, model: nn.Module) -> tuple[weights.State, str]:
        """Tensors in the serving form, mapped, and the SHA-256 of their content."""
        expected = model.state_dict()
        form = weights.layout(expected)

        def write(file: Path) -> None:
            log.info("preparing %s as %s", source, self._placement.precision)
            weights.write(self._converted(source, model), file)

        if not self._checkpoints.has(source, form):
            state = self._usable(source, model)
            if source.suffix == ".safetensors" and weights.fits(expected, state):
                return state, self._identity(source, state)
        try:
            with self._checkpoints.prepared(source, form=form, write=write) as file:
                state = weights.read(file)
                return state, self._identity(file, state)
        except OSError as error:
            log.warning("no prepared copy of %s: %s; every load converts it", source, error)
            state = self._converted(source, model)
            return state, weights.identity(state)

    def _converted(self, source: Path, model: nn.Module) -> weights.State:
        state = self._usable(source, model)
        return {
            name: state[name].to(tensor.dtype, copy=True, memory_format=torch.contiguous_format)
            for name, tensor in model.state_dict().items()
        }

    def _identity(self, file: Path, state: weights.State) -> str:
        return self._checkpoints.remember(file, "state", lambda: weights.identity(state))

    def _traits(self, recipe: Recipe, model: nn.Module, identity: str) -> Traits:
        space = {
            "weights": identity,
            "model": recipe.model,
            "preprocess": recipe.preprocessing(model),
            "decode": self._placement.decode,
            "precision": self._placement.precision,
            "dimension": recipe.dimension,
            "normalised": "l2",
        }
        return Traits(
            dimension=recipe.dimension,
            kinds=(Kind.IMAGE, Kind.TEXT),
            fingerprint=sha256(json.dumps(space, sort_keys=True).encode()).hexdigest()[:16],
            precision=self._placement.precision,
            input_size=recipe.input_size,
        )


class OpenClipModel:
    """One open_clip model. On a CPU, device and host are the same memory and moves cost nothing.

    With a GPU the weights keep their host copy while they are on the device: the mapped file at
    first, page-locked memory from the first `lower` on, so that a later `lift` runs at the speed
    of the bus and `lower` only drops the device's copy.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        placement: Placement,
        preprocessing: dict[str, Any],
        tokenizer: Tokenizer,
        traits: Traits,
    ) -> None:
        config = PreprocessCfg(**preprocessing)
        # open_clip's own transform; its last two steps, to float and normalise, are in `run`.
        self._to_pixels = image_transform_v2(config, is_train=False).transforms[:-2]
        self._model: Any = model
        self._device = torch.device(placement.device)
        self._dtype: torch.dtype = getattr(torch, placement.precision)
        self._mean, self._std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (config.mean, config.std)
        )
        self._tokenizer = tokenizer
        self._tokenizing = threading.Lock()  # Hugging Face's tokenizers refuse a second thread
        self._host = [tensor.data for tensor in _tensors(model)]
        self._pinned: Tensor | None = None
        self._traits = traits

    @property
    def traits(self) -> Traits:
        return self._traits

    def prepare_image(self, image: Image.Image) -> NDArray[np.uint8]:
        """(height, width, 3), the pixels that open_clip's preprocessing would normalise."""
        _refuse_strips(image, self._traits.input_size or 1)
        for step in self._to_pixels:
            image = step(image)
        return np.asarray(image)

    def prepare_text(self, text: str) -> PreparedText:
        """The model's own tokens, cut to its context length."""
        length: int = self._tokenizer.context_length  # type: ignore[attr-defined]
        with self._tokenizing:
            row = self._tokenizer([text], context_length=length)[0]
            longer = self._tokenizer([text], context_length=length + 1)[0]
            _forget_words(self._tokenizer)
        kept = length - 1 if getattr(self._tokenizer, "tokenizer_mode", "") == "clips" else length
        truncated = not torch.equal(row[:kept], longer[:kept])
        return PreparedText(tokens=row.numpy(), truncated=truncated)

    @torch.inference_mode()
    def run(self, kind: Kind, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        with _memory_errors():
            if kind is Kind.IMAGE:
                rows = self._model.encode_image(self._normalised(batch), normalize=False)
            else:
                tokens = np.stack([row.tokens for row in cast(Sequence[PreparedText], batch)])
                rows = self._model.encode_text(self._moved(tokens), normalize=False)
            vectors: NDArray[np.float32] = rows.float().cpu().numpy()
            return vectors

    def footprint(self) -> Footprint:
        size = _bytes(self._model)
        if self._on_device():
            return Footprint(device_bytes=size, host_bytes=size if self._pinned is not None else 0)
        return Footprint(host_bytes=size)

    def lift(self) -> None:
        if self._device.type != "cpu" and not self._on_device():
            with _memory_errors():
                copies = [host.to(self._device, non_blocking=True) for host in self._host]
                self._mean, self._std = (each.to(self._device) for each in (self._mean, self._std))
            self._place(copies)

    def lower(self) -> None:
        if self._on_device():
            if self._device.type == "cuda" and self._pinned is None:
                self._pinned, self._host = _pinned(self._host)
            self._place(self._host)

    def unload(self) -> None:
        self._model.to_empty(device="meta")
        self._host = []
        self._free()

    def _free(self) -> None:
        if self._pinned is not None:
            _cuda().cudaHostUnregister(self._pinned.data_ptr())
            self._pinned = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)

    def _on_device(self) -> bool:
        return next(_tensors(self._model)).device.type == self._device.type != "cpu"

    def _place(self, data: Sequence[Tensor]) -> None:
        for tensor, where in zip(_tensors(self._model), data, strict=True):
            tensor.data = where

    def _normalised(self, batch: Sequence[Prepared]) -> Tensor:
        """(rows, 3, height, width); the same float32 steps as torchvision's, then cast."""
        images = np.stack(cast(Sequence[NDArray[np.uint8]], batch))
        pixels = self._moved(images).permute(0, 3, 1, 2)
        return ((pixels.float() / 255 - self._mean) / self._std).to(self._dtype)

    def _moved(self, rows: NDArray[Any]) -> Tensor:
        host = torch.from_numpy(rows)
        if self._device.type == "cuda":
            host = host.pin_memory()
        return host.to(self._device, non_blocking=True)


def _adapted(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The renamings and resizings of `open_clip.factory.load_checkpoint`, without its copy."""
    state = factory.convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = factory.convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        wanted = getattr(model, name, None)
        if name in state and wanted is not None and state[name].numel() == wanted.numel():
            state[name] = state[name].reshape(wanted.shape)
    if "logit_bias" not in state and getattr(model, "logit_bias", None) is not None:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    if not hasattr(model, "text.transformer.embeddings.position_ids"):
        state.pop("text.transformer.embeddings.position_ids", None)
    with suppress(AssertionError, RuntimeError):  # what cannot be resized is named as misshaped
        factory.resize_pos_embed(state, model)
        factory.resize_text_pos_embed(state, model)
    return state


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in _tensors(model))


def _pinned(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Copies in one page-locked block, and the block.

    Registered by hand, because torch's own allocator rounds pinned memory up to a power of two.
    """
    starts = np.cumsum([0, *(-(-tensor.nbytes // ALIGN) * ALIGN for tensor in tensors)])
    block = torch.empty(int(starts[-1]), dtype=torch.uint8)
    views = [
        block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, tensors, strict=False)
    ]
    for view, tensor in zip(views, tensors, strict=True):
        view.copy_(tensor)
    _cuda().cudaHostRegister(block.data_ptr(), block.nbytes, 0)
    return block, views


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


@contextmanager
def _memory_errors() -> Iterator[None]:
    """torch's two ways to run out of memory, as the one that callers expect."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise MemoryError(str(error)) from None


def _refuse_strips(image: Image.Image, size: int) -> None:
    """open_clip enlarges the short edge first, which would take gigabytes for a thin strip."""
    short, long = sorted(image.size)
    if size * size * (long / short) > MAX_RESIZED_PIXELS:
        raise ImageTooLarge(f"a picture of {image.width}x{image.height} is too thin to embed")


def _forget_words(tokenizer: Any) -> None:
    if len(getattr(tokenizer, "cache", ())) > MAX_KNOWN_WORDS:
        tokenizer.cache = {word: word for word in ("<start_of_text>", "<end_of_text>")}
