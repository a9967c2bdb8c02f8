"""The timm family: image encoders such as DINOv2, which know no texts."""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import timm.data
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from numpy.typing import NDArray
from PIL import Image
from timm.models import model_entrypoint, vision_transformer
from torch import Tensor, nn
from torchvision.transforms import Normalize

from api_client.wire.errors import BadCheckpoint, LoadFailed, first_line, nearest
from api_client.wire.messages import Kind

from ..catalogue import Entry
from . import hub, weights
from .base import About
from .layout import lay_out_trunk
from .meta import without_memory
from .residence import bytes_of
from .resize import pixels_of, steps_for
from .torch_model import Normalised, TorchModel

__all__ = ["Timm"]

PREFIX = "timm/"


class Timm(TorchModel):
    """`architecture` is timm's name, `tag` the part behind its dot, `options` go to timm.

    Weights are the entry's checkpoint, `<architecture>/<tag>.safetensors` under `models_dir`, or
    come from timm's hub. Preprocessing is what timm's data config says for these weights.
    """

    about = About(
        description="timm's image encoders, such as DINOv2", tags=("image",), at_rest=("int8",)
    )

    @classmethod
    def describe(cls, model_id: str) -> Entry | None:
        """An entry for `timm/<architecture>.<tag>`, if timm has such weights."""
        name = model_id.removeprefix(PREFIX)
        if model_id == name or not timm.is_model_pretrained(name):
            return None
        architecture, _, tag = name.partition(".")
        return Entry(
            id=model_id,
            backend="timm",
            architecture=architecture,
            tag=tag,
            description=f"timm's {architecture} with the weights {tag}",
            kinds=(Kind.IMAGE,),
        )

    def check(self) -> int:
        module = self._without_weights()
        if (file := self._here(module)) is not None:
            self._state(file, module)
        elif self.placement.offline:
            hub.require(f"the weights of {self.entry.id}", "", offline=True)
        size = bytes_of(module) * self.dtype.itemsize // torch.float32.itemsize
        self._refuse_maps(module.to("meta"))
        return size

    def build(self) -> nn.Module:
        module: Any = self._without_weights()
        file = self._here(module) or hub.fetch(
            self.entry.id, _source(module), self._hub_dir, offline=self.placement.offline
        )
        # Copies: a mapped file that somebody writes over would change the model.
        state = {name: tensor.clone() for name, tensor in self._state(file, module).items()}
        module.load_state_dict(state, assign=True)
        config, (*steps, _, normalise) = self._preparation(module)
        self._to_pixels = steps_for(self.placement.decode, steps)
        self._normalised = Normalised(
            normalise.mean, normalise.std, device=self.device, dtype=self.dtype
        )
        self._preprocessing = json.dumps(config, sort_keys=True, default=str)
        self.dimension = int(module.head_hidden_size)
        self.input_size = max(config["input_size"][1:])
        return module  # type: ignore[no-any-return]

    def space(self) -> str:
        return f"{super().space()}\n{self._preprocessing}"

    def prepare_image(self, image: Image.Image) -> NDArray[np.uint8]:
        """(height, width, 3), the pixels that timm's preprocessing would normalise."""
        return pixels_of(image.convert("RGB"), self._to_pixels)

    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self.module(self._normalised(pixels)).float().cpu().numpy()
        return vectors

    def lay_out(self) -> None:
        lay_out_trunk(self.module)

    @property
    def _name(self) -> str:
        return f"{self.entry.architecture}.{self.entry.tag}".rstrip(".")

    @property
    def _hub_dir(self) -> Path:
        folder = self.placement.cache_dir
        return folder / "hub" if folder else Path(HF_HUB_CACHE)

    def _without_weights(self) -> nn.Module:
        """Parameters on the meta device, as far as the architecture can be built so."""
        return without_memory(self._construct) or self._construct()

    def _refuse_maps(self, module: nn.Module) -> None:
        """Encoders that answer with a vector for each part of a picture.

        Args:
            module: on the meta device, where a pass computes shapes only.
        """
        config, _ = self._preparation(module)
        answer: Any = torch.empty(1, 0)  # as if of a network that cannot pass there
        with suppress(Exception), torch.inference_mode():
            answer = module.eval()(torch.empty(1, *config["input_size"], device="meta"))
        is_one = isinstance(answer, Tensor)
        if not is_one or answer.dim() != 2:
            what = "x".join(map(str, answer.shape[1:])) + " numbers" if is_one else "several maps"
            raise LoadFailed(
                f"{self._name} answers a picture with {what}, not with one vector: take an "
                "architecture that pools"
            )

    def _preparation(self, module: nn.Module) -> tuple[dict[str, Any], list[Any]]:
        """timm's data config, and the steps of its transform.

        Raises:
            LoadFailed: the options make none, or one that is not for colours.
        """
        data: Any = timm.data
        options = dict(self.entry.options)
        try:
            config = data.resolve_data_config(options, model=module)
            transform = data.create_transform(**config, is_training=False)
            *_, normalise = steps = transform.transforms
            pixels = transform(Image.new("RGB", (8, 8)))
            fits = pixels.shape == tuple(config["input_size"]) and bool(pixels.isfinite().all())
            colours = len(normalise.mean), len(normalise.std), options.get("in_chans", 3)
            usable = fits and colours == (3, 3, 3) and isinstance(normalise, Normalize)
        except (
            AssertionError,
            AttributeError,
            KeyError,
            OverflowError,
            RuntimeError,
            TypeError,
            ValueError,
        ):
            usable = False
        if not usable:
            raise LoadFailed(
                f"timm cannot prepare pictures in three colours for {self._name} with "
                f"{json.dumps(options, default=str):.200}"
            )
        return config, steps

    def _construct(self) -> nn.Module:
        if not timm.is_model(self._name):
            file = "name one, and a file as `checkpoint`"
            hint = nearest(self._name, timm.list_models(), otherwise=file)
            raise LoadFailed(f"timm cannot build {self._name}: it has no such architecture; {hint}")
        try:
            options = dict(self.entry.options)
            module: nn.Module = timm.create_model(self._name, num_classes=0, **options)
        except Exception as error:  # whatever a wrong option makes of a constructor
            raise LoadFailed(f"timm cannot build {self._name}: {first_line(error)}") from error
        return module

    def _here(self, module: nn.Module) -> Path | None:
        """The weights on this machine, if they are."""
        entry, folder = self.entry, self.placement.models_dir
        if entry.checkpoint is not None:
            return entry.checkpoint
        if folder and (file := folder / entry.architecture / f"{entry.tag}.safetensors").is_file():
            return file
        return hub.cached(_source(module), self._hub_dir)

    def _state(self, file: Path, module: nn.Module) -> weights.State:
        """A checkpoint's tensors as timm itself would adapt them, without the classifier."""
        state = weights.read(file)
        if adapt := _adaptation(self.entry.architecture):
            # `differences` says what does not fit
            with suppress(AttributeError, KeyError, RuntimeError):
                state = adapt(state, module)
        expected = module.state_dict()
        heads = getattr(module, "pretrained_cfg", {}).get("classifier") or ()
        heads = [heads] if isinstance(heads, str) else heads
        # Norms and hidden layers before a classifier go with it, as of LeViT and CAFormer.
        prefixes = tuple(f"{head.partition('.')[0]}." for head in heads)
        state = {
            name: tensor
            for name, tensor in state.items()
            if name in expected or not prefixes or not name.startswith(prefixes)
        }
        if found := weights.differences(expected, state):
            raise BadCheckpoint(f"{file} belongs to another architecture: {found}")
        return state


def _adaptation(architecture: str) -> Callable[..., Any] | None:
    """How timm adapts the checkpoints of an architecture. Of plain vision transformers with some
    names it resizes positions in another way, which stands where it builds them."""
    builder: Any = sys.modules[model_entrypoint(architecture).__module__]
    adapt: Callable[..., Any] | None = getattr(builder, "checkpoint_filter_fn", None)
    if adapt is None or builder is not vision_transformer:
        return adapt
    if "flexi" in architecture:
        return partial(adapt, interpolation="bilinear", antialias=False)
    if "radio" in architecture:
        corners = any(name in architecture for name in vision_transformer._RADIO_ALIGN_CORNERS)
        return partial(adapt, interpolation="bilinear", antialias=False, align_corners=corners)
    return adapt


def _source(module: nn.Module) -> dict[str, str]:
    """Where timm would get the weights, as `hub` understands it."""
    config: Any = getattr(module, "pretrained_cfg", {})
    repository = config.get("hf_hub_id")
    if not repository:
        return {"url": config.get("url") or ""}
    return {"hf_hub": f"{repository}/{config.get('hf_hub_filename') or 'model.safetensors'}"}
