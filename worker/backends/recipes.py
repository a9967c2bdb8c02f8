"""How an open_clip model is built: its architecture, what it makes of pictures, its tokenizer."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import pretrained
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from torch import Tensor, nn

from api_client.wire.errors import (
    BadCheckpoint,
    LoadFailed,
    WeightsUnavailable,
    first_line,
    nearest,
)

from ..catalogue import Entry
from . import content, hub, vocabulary, words
from .meta import parameters_on_meta, without_memory

# Texts in, rows of token ids out; keyword context_length.
Tokenizer = Callable[..., Tensor]

HUB_NAMES = {"hf_model_name", "hf_tokenizer_name"}  # of a repository, or a folder
TOKENIZER_FIELDS = ("context_length", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")
SMALL = 8  # pixels of an edge, for a trial
TOWERS = ("vision_cfg", "text_cfg")

# By what Hugging Face's tokenizers call their files, of every kind of them.
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "*_tokens*", "*.model")


@dataclass(frozen=True)
class Recipe:
    """One architecture, as one set of weights wants it.

    Attributes:
        architecture: open_clip's name, or the path of a JSON config.
        model: the arguments of open_clip's model class.
        preprocess: the fields of open_clip's PreprocessCfg that are not to be its defaults.
        source: where open_clip would get the weights; empty if it knows none.
        doubts: what of this may be wrong for weights that no tag names.
    """

    architecture: str
    model: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    source: Mapping[str, Any]
    doubts: tuple[str, ...] = ()

    @classmethod
    def of(cls, entry: Entry) -> "Recipe":
        """
        Raises:
            LoadFailed: the architecture is unknown or its config unusable.
        """
        if entry.architecture.endswith(".json"):
            return cls._from_file(Path(entry.architecture))
        # Not by asking for its config: of `local-dir:` and `hf-hub:` that has no preprocessing.
        if entry.architecture not in (known := open_clip.list_models()):
            config = "name a model's open_clip_config.json"
            hint = nearest(entry.architecture, known, otherwise=config)
            raise LoadFailed(f"open_clip has no architecture {entry.architecture!r}; {hint}")
        model = open_clip.get_model_config(entry.architecture)
        source = pretrained.get_pretrained_cfg(entry.architecture, entry.tag)
        # Weights trained with QuickGELU give wrong vectors, silently, under any other activation.
        if source.get("quick_gelu") or entry.tag == "openai":
            model["quick_gelu"] = True
        if not source:
            return cls._untagged(entry.architecture, model)
        return cls(entry.architecture, model, source, source)

    @classmethod
    def _untagged(cls, architecture: str, model: Mapping[str, Any]) -> "Recipe":
        """As all weights want that open_clip has for the architecture, if they agree."""
        tags = pretrained.list_pretrained_tags_by_model(architecture)
        known = {tag: pretrained.get_pretrained_cfg(architecture, tag) for tag in tags}
        ways: list[dict[str, Any]] = []
        for asked in known.values():
            if (way := merge_preprocess_dict(asdict(PreprocessCfg()), asked)) not in ways:
                ways.append(way)
        doubts = []
        if len(ways) > 1:
            doubts.append(
                f"its pictures are prepared as OpenAI's, those for some weights of {architecture} "
                "are not"
            )
        are_quick = all(asked.get("quick_gelu") or tag == "openai" for tag, asked in known.items())
        if known and are_quick and not model.get("quick_gelu"):
            doubts.append(
                f"its activation is GELU, all weights of {architecture} that open_clip has want "
                "QuickGELU"
            )
        return cls(architecture, model, ways[0] if len(ways) == 1 else {}, {}, tuple(doubts))

    @classmethod
    def _from_file(cls, file: Path) -> "Recipe":
        try:
            config = json.loads(file.read_text())
            model = config.get("model_cfg", config)
            fields = {name: model[name] for name in ("embed_dim", *TOWERS)}
            towers_are_tables = all(isinstance(model[name], dict) for name in TOWERS)
        except OSError as error:
            raise WeightsUnavailable(f"config {file}: {error.strerror}") from None
        except KeyError as error:
            raise BadCheckpoint(f"config {file} lacks {error}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise BadCheckpoint(f"config {file} is no open_clip config: {error}") from None
        if not towers_are_tables:
            raise BadCheckpoint(
                f"config {file} is no open_clip config: {' and '.join(TOWERS)} have to be objects"
            )
        return cls(str(file), {**model, **fields}, config.get("preprocess_cfg") or {}, {})

    @property
    def dimension(self) -> int:
        return int(self.model["embed_dim"])

    @property
    def input_size(self) -> int:
        size = self.model["vision_cfg"].get("image_size", 224)
        return int(max(size) if isinstance(size, list | tuple) else size)

    @property
    def asks_hub(self) -> bool:
        """Whether the text tower or its tokenizer come from files of a model hub."""
        text = self.model["text_cfg"]
        named = {"hf_model_name"} if self._has_tokenizer_files else HUB_NAMES
        # os.path's is quiet about a folder that may not be entered.
        return any(not os.path.isdir(str(text[name])) for name in named & text.keys())

    def build(self, dtype: torch.dtype) -> nn.Module:
        """The model without its weights: parameters on the meta device, buffers real.

        Buffers are real because some, such as causal masks and rotary tables, are in no file.

        Raises:
            WeightsUnavailable: the config of its text tower is not here.
            LoadFailed: the config does not make a model.
        """
        try:
            model = without_memory(self._construct) or self._with_memory()
        except OSError as error:
            raise self._lacks("text tower", error) from error
        except Exception as error:  # whatever a wrong config makes of a constructor
            why = first_line(error) or "open_clip refuses a value, and does not say which"
            raise LoadFailed(f"{self.architecture} cannot be built: {why}") from error
        return model.requires_grad_(False).to(dtype).eval()

    def _with_memory(self) -> nn.Module:
        model = self._construct()
        with parameters_on_meta():
            for module in model.modules():
                for name, parameter in list(module.named_parameters(recurse=False)):
                    module.register_parameter(name, parameter)
        return model

    def _construct(self) -> nn.Module:
        """As `open_clip.create_model` does, and never with weights of its own from a hub."""
        config: dict[str, Any] = deepcopy(dict(self.model))
        if "timm_model_name" in config["vision_cfg"]:
            config["vision_cfg"]["timm_model_pretrained"] = False
        if is_hugging_face := "hf_model_name" in config["text_cfg"]:
            config["text_cfg"]["hf_model_pretrained"] = False
        is_custom = config.pop("custom_text", False) or is_hugging_face
        kind: Callable[..., nn.Module] = open_clip.CustomTextCLIP if is_custom else open_clip.CLIP
        if is_custom and "multimodal_cfg" in config:
            kind = open_clip.CoCa
        return kind(**config)

    def preprocessing(self, model: nn.Module) -> dict[str, Any]:
        """The fields of open_clip's PreprocessCfg for a model of this recipe.

        Raises:
            BadCheckpoint: open_clip makes no transform of them.
        """
        try:
            fields = dict(merge_preprocess_dict(asdict(PreprocessCfg()), self.preprocess))
            fields["size"] = model.visual.image_size  # type: ignore[union-attr]
            small = PreprocessCfg(**{**fields, "size": SMALL})
            prepare = image_transform_v2(small, is_train=False)
            *_, normalise = prepare.transforms
            has_channels = torch.tensor([normalise.mean, normalise.std]).shape == (2, 3)
            usable = has_channels and bool(prepare(Image.new("RGB", (3, 2))).isfinite().all())
        except (AssertionError, AttributeError, OverflowError, RuntimeError, TypeError, ValueError):
            usable = False
        if not usable:
            raise BadCheckpoint(
                f"{self.architecture}: open_clip cannot prepare pictures as its preprocess_cfg "
                f"says: {json.dumps(self.preprocess):.200}"
            )
        return fields

    def tokenizer(self, cache_dir: Path) -> Tokenizer:
        """
        Raises:
            WeightsUnavailable: its files or the package that reads them are not here.
            BadCheckpoint: none can be made as the config says.
        """
        try:
            tokenizer = self._tokenizer(str(cache_dir))
        except (AssertionError, AttributeError, LookupError, TypeError):
            text = self.model["text_cfg"]
            said = {name: text[name] for name in TOKENIZER_FIELDS if name in text}
            raise BadCheckpoint(
                f"{self.architecture}: open_clip cannot make a tokenizer as its text_cfg says: "
                f"{json.dumps(said):.200}"
            ) from None
        except OSError as error:
            raise self._lacks("tokenizer", error) from error
        except (ImportError, RuntimeError, ValueError) as error:
            raise WeightsUnavailable(
                f"no tokenizer for {self.architecture}: {hub.plain(first_line(error))}"
            ) from error
        if isinstance(tokenizer, HFTokenizer) and vocabulary.is_empty(tokenizer.tokenizer):
            raise WeightsUnavailable(
                f"no tokenizer for {self.architecture}: its files lack words: {vocabulary.FILES}"
            )
        return tokenizer

    def _lacks(self, what: str, error: OSError) -> WeightsUnavailable:
        """What Hugging Face's library found neither here nor on its hub."""
        why = hub.plain(first_line(error))
        return WeightsUnavailable(f"no {what} for {self.architecture}: {why}; {hub.NAME_CONFIG}")

    def tokenizer_content(self, cache_dir: Path) -> str:
        """SHA-256 of the tokenizer's files, wherever they are; empty where it is open_clip's own.

        To be asked once the tokenizer was made: before, a hub's may not be here.
        """
        if not (name := self.model["text_cfg"].get("hf_tokenizer_name")):
            return ""
        folder = self._tokenizer_folder(name, cache_dir)
        files = {file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)}
        return hashlib.sha256("".join(content.lines(folder, files)).encode()).hexdigest()

    def _tokenizer_folder(self, name: str, cache_dir: Path) -> Path:
        """As Hugging Face's library looks for it."""
        if self._has_tokenizer_files:
            return Path(self.architecture).parent
        if os.path.isdir(name):
            return Path(name)
        kwargs = self.model["text_cfg"].get("tokenizer_kwargs") or {}
        return hub.snapshot(name, cache_dir, revision=kwargs.get("revision"))

    def _tokenizer(self, cache_dir: str) -> Tokenizer:
        text = self.model["text_cfg"]
        name = text.get("hf_tokenizer_name")
        kwargs = text.get("tokenizer_kwargs") or {}
        length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
        if not name and (self._is_file or "siglip" not in self.architecture.lower()):
            return _own_tokenizer(length, kwargs)
        if not self._is_file:
            named: Tokenizer = open_clip.get_tokenizer(self.architecture, cache_dir=cache_dir)
            return named
        hugging_face: Tokenizer = HFTokenizer(
            str(Path(self.architecture).parent) if self._has_tokenizer_files else name,
            context_length=length,
            cache_dir=cache_dir,
            tokenizer_mode=text.get("tokenizer_mode"),
            **{**kwargs, "trust_remote_code": False},  # the model's own config does not decide that
        )
        return hugging_face

    @property
    def _is_file(self) -> bool:
        return self.architecture.endswith(".json")

    @property
    def _has_tokenizer_files(self) -> bool:
        beside = Path(self.architecture).with_name("tokenizer_config.json")
        return self._is_file and beside.is_file()


def _own_tokenizer(context_length: int, kwargs: Mapping[str, Any]) -> Tokenizer:
    """open_clip's own one. Its tables are large and made when open_clip is imported: share them."""
    if kwargs:
        return words.Tokenizer(context_length=context_length, **kwargs)
    shared: Any = words.Tokenizer.__new__(words.Tokenizer)
    vars(shared).update(vars(open_clip.tokenizer._tokenizer))
    shared.context_length = context_length
    shared.cache = dict(shared.cache)
    plain: Tokenizer = shared
    return plain
