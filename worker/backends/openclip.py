"""The open_clip family: every architecture of its registry, JSON configs, local checkpoints."""

import logging
from contextlib import suppress
from dataclasses import replace
from errno import ENAMETOOLONG
from functools import partial
from pathlib import Path
from shutil import copyfile, rmtree
from tempfile import mkdtemp
from weakref import finalize

import huggingface_hub
import open_clip
import torch
from open_clip import factory, pretrained
from torch import Tensor, nn

from api_client.wire.errors import BadCheckpoint, LoadFailed, WeightsUnavailable
from api_client.wire.messages import Kind

from ..catalogue import Entry
from . import hub, hugging_face, weights
from .base import About, Placement, Traits, fingerprint
from .checkpoints import Checkpoints
from .clip_model import ClipModel
from .cores import BRIEF, CORES
from .recipes import Recipe, Tokenizer
from .residence import bytes_of

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pt", ".bin")


class OpenClip:
    """Turns catalogue entries into open_clip models.

    Weights are mapped, not read, and always from a copy of our own in `placement.cache_dir` (a
    temporary folder without one): a checkpoint that somebody writes over, or cuts short, would
    change the vectors of the model that has it mapped, or end the process.
    """

    about = About(
        description="CLIP, SigLIP, CoCa and whatever else open_clip constructs",
        tags=("image", "text"),
        at_rest=("int8",),
        options=(),
    )

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._dtype: torch.dtype = getattr(torch, placement.precision)
        self._cache_dir = placement.cache_dir or _temporary_folder(self)
        self._checkpoints = Checkpoints(self._cache_dir / "prepared")
        # By `check`, for the load after it.
        self._built: tuple[Entry, nn.Module, Tokenizer | None] | None = None
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
        """Bytes of the weights; refuses what can be refused without loading them."""
        recipe = Recipe.of(entry)
        model, tokenizer = self._build(recipe)
        recipe.preprocessing(model)  # refuses what open_clip would
        source = self._local(entry) or hub.cached(recipe.source, self._hub_dir)
        if source is not None:
            self._require_usable(source, model)
            self._require_content(source, entry)
            _require_network(source, model, recipe)
        elif not recipe.source:
            raise WeightsUnavailable(self._nowhere(entry))
        elif self._placement.offline:
            hub.require(f"the weights of {entry.id}", "", offline=True)
        self._built = entry, model, tokenizer
        return bytes_of(model)

    def load(self, entry: Entry) -> ClipModel:
        """The model in host memory; its pages come from the file as they are first touched."""
        recipe = Recipe.of(entry)
        (checked, model, tokenizer), self._built = self._built or (None, None, None), None
        if model is None or checked != entry:
            model, tokenizer = self._build(recipe)
        source = self._source(entry, recipe)
        self._require_content(source, entry)
        for doubt in recipe.doubts:
            log.warning(
                "%s: %s; write an entry with %s as `checkpoint`, and the tag of what that was "
                "tuned from",
                entry.id,
                doubt,
                source,
            )
        tokenizer = tokenizer or recipe.tokenizer(self._hub_dir)
        state, identity = self._state(source, model)
        _require_network(source, model, recipe)
        model.load_state_dict(state, assign=True)
        return ClipModel(
            entry,
            self._placement,
            module=model,
            preprocessing=recipe.preprocessing(model),
            tokenizer=tokenizer,
            traits=self._traits(entry, recipe, model, identity),
        )

    @property
    def _hub_dir(self) -> Path:
        return self._cache_dir / "hub"

    def _build(self, recipe: Recipe) -> tuple[nn.Module, Tokenizer | None]:
        """The model without its weights; and its tokenizer, where that had to be looked for."""
        if recipe.asks_hub and not self._placement.offline:
            what, where = f"text files of {recipe.architecture}", huggingface_hub.constants.ENDPOINT
            try:
                hub.require(what, where, offline=False, hint=hub.NAME_CONFIG)
            except WeightsUnavailable as away:
                return self._build_from_cache(recipe, away)
        return recipe.build(self._dtype), None

    def _build_from_cache(
        self, recipe: Recipe, away: WeightsUnavailable
    ) -> tuple[nn.Module, Tokenizer]:
        try:
            with hub.away():
                tokenizer = recipe.tokenizer(self._hub_dir)
                model = recipe.build(self._dtype)
        except LoadFailed:
            raise away from None
        log.warning("the hub is away: %s has its text files from the cache", recipe.architecture)
        return model, tokenizer

    def _local(self, entry: Entry) -> Path | None:
        """The checkpoint on this machine that the entry names, or the first under models_dir."""
        if entry.checkpoint is not None:
            return entry.checkpoint
        if (folder := self._placement.models_dir) is None or not entry.tag:
            return None
        stem = folder / entry.architecture / entry.tag
        files = (stem.with_name(stem.name + suffix) for suffix in SUFFIXES)
        try:
            return next((file for file in files if file.is_file()), None)
        except OSError as error:
            if error.errno == ENAMETOOLONG:  # so no file is called that
                return None
            raise

    def _source(self, entry: Entry, recipe: Recipe) -> Path:
        if (local := self._local(entry)) is not None:
            return local
        if not recipe.source:
            raise WeightsUnavailable(self._nowhere(entry))
        return hub.fetch(entry.id, recipe.source, self._hub_dir, offline=self._placement.offline)

    def _nowhere(self, entry: Entry) -> str:
        tags = ", ".join(pretrained.list_pretrained_tags_by_model(entry.architecture)) or "none"
        return f"no weights for {entry.id}: give a checkpoint, or one of open_clip's tags ({tags})"

    def _require_usable(self, source: Path, model: nn.Module) -> None:
        """As `_usable`, but each version of a file is read once only."""
        what = f"usable as {weights.layout(model.state_dict())}"

        def usable() -> str:
            self._usable(source, model)
            return "yes"

        try:
            self._checkpoints.remember(source, what, usable)
        except OSError:
            self._usable(source, model)  # says what is wrong with the file

    def _require_content(self, source: Path, entry: Entry) -> None:
        if entry.sha256 and self._checkpoints.sha256(source) != entry.sha256.lower():
            raise BadCheckpoint(f"{source} does not have the SHA-256 that {entry.id} asks for")

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
        # The grid too: positions of 4x8 patches and of 8x4 have the same shape.
        grid = getattr(model.visual, "grid_size", "")
        form = f"{weights.layout(expected)} {grid}"

        def write(file: Path) -> None:
            log.info("preparing %s as %s", source, self._placement.precision)
            if source.suffix == ".safetensors" and weights.fits(expected, weights.read(source)):
                copyfile(source, file)  # takes no memory
            else:
                weights.write(self._converted(source, model), file)

        try:
            with self._checkpoints.prepared(source, form=form, write=write) as file:
                mapped = weights.read(file)
                identity = partial(weights.identity, mapped)
                return mapped, self._checkpoints.remember(file, "identity", identity)
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

    def _traits(self, entry: Entry, recipe: Recipe, model: nn.Module, identity: str) -> Traits:
        space = {
            "weights": identity,
            "model": recipe.model,
            "preprocess": recipe.preprocessing(model),
            "decode": self._placement.decode,
            "precision": self._placement.precision,
            "dimension": recipe.dimension,
            "normalised": "l2",
        }
        if tokenizer := recipe.tokenizer_content(self._hub_dir):
            space["tokenizer"] = tokenizer
        traits = Traits(
            dimension=recipe.dimension,
            kinds=(Kind.IMAGE, Kind.TEXT),
            fingerprint=fingerprint(space, entry),
            precision=self._placement.precision,
            input_size=recipe.input_size,
        )
        if self._placement.device != "cpu":
            return traits
        return replace(traits, brief=BRIEF, parallel=CORES.parallel)


def _temporary_folder(owner: object) -> Path:
    folder = mkdtemp(prefix="clipyard-")
    finalize(owner, rmtree, folder, ignore_errors=True)
    return Path(folder)


def _require_network(source: Path, model: nn.Module, recipe: Recipe) -> None:
    """Of transformers' checkpoints, whose config is beside them: both may change by themselves."""
    config = source.with_name("config.json")
    if config.is_file() and hugging_face.wrote(weights.read(source)):
        hugging_face.require_network(config, model, recipe.architecture)


def _adapted(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The renamings and resizings of `open_clip.factory.load_checkpoint`, without its copy."""
    if hugging_face.wrote(state):
        state = hugging_face.renamed(state)
    with suppress(AttributeError, LookupError, RuntimeError):  # what stays as it is does not fit
        state = factory.convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = factory.convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        wanted = getattr(model, name, None)
        if name in state and wanted is not None and state[name].numel() == wanted.numel():
            state[name] = state[name].reshape(wanted.shape)
    has_bias = getattr(model, "logit_bias", None) is not None
    if has_bias and "logit_scale" in state and "logit_bias" not in state:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    state.pop("text.transformer.embeddings.position_ids", None)
    # What cannot be resized is named as misshaped.
    with suppress(AssertionError, LookupError, RuntimeError):
        factory.resize_pos_embed(state, model)
        factory.resize_text_pos_embed(state, model)
    return state
