"""The sentence-transformers family: text models of a local folder, or of the hub by name."""

import logging
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from math import inf, nan, prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from huggingface_hub.constants import ENDPOINT
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from sentence_transformers import SentenceTransformer, __version__
from torch import nn
from transformers import PreTrainedModel

from api_client.wire.errors import (
    BackendFailed,
    BadCheckpoint,
    LoadFailed,
    WeightsUnavailable,
    first_line,
)
from api_client.wire.messages import Kind

from ..catalogue import Entry
from . import content, hub, vocabulary, weights
from .base import About, PreparedText
from .lost import is_beyond_repair
from .samples import SAME, TEXTS, lowest_cosine
from .torch_model import TorchModel

__all__ = ["SentenceTransformers"]

log = logging.getLogger(__name__)

PREFIX = "sentence_transformers/"
# As the hub names models. The library takes any name for the path of a folder, if there is one, and
# whoever asks is not to open those.
ON_THE_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
NAME_FOLDER = "name a folder that holds them as `checkpoint` in an entry"
OLDEST = 6  # before, it runs code in a folder, and its transformers marks no weights as read
SETTINGS = {".json", ".txt", ".model"}  # networks, poolings, tokenizers, vocabularies

if int(__version__.partition(".")[0]) < OLDEST:
    raise BackendFailed(
        f"it needs sentence-transformers {OLDEST} or newer, and {__version__} is installed: "
        f"pip install 'sentence-transformers>={OLDEST}'"
    )


class SentenceTransformers(TorchModel):
    """`checkpoint` is a folder that sentence-transformers wrote; without it, `architecture` is
    the hub's name of the model. Code that comes with a model is never run."""

    about = About(
        description="text models of sentence-transformers",
        tags=("text",),
        at_rest=("int8",),
        options=(),
    )

    @classmethod
    def describe(cls, model_id: str) -> Entry | None:
        """An entry for `sentence_transformers/<name on the hub>`; the load sees if it is there."""
        name = model_id.removeprefix(PREFIX)
        if name == model_id or not ON_THE_HUB.fullmatch(name) or Path(name).exists():
            return None
        return Entry(
            model_id, backend="sentence_transformers", architecture=name, kinds=(Kind.TEXT,)
        )

    def check(self) -> int:
        folder = self.entry.checkpoint
        if folder is None:
            return super().check()
        if not (folder / "modules.json").is_file():
            raise WeightsUnavailable(f"{folder} is no folder of sentence-transformers")
        return sum(_numbers(file) for file in folder.rglob("*.safetensors")) * self.dtype.itemsize

    def build(self) -> nn.Module:
        self.check()
        module: Any = self._local() or self._fetched()
        self._set_up_tokenizers(module)
        self._make_whole(module)
        try:
            self.dimension = int(module.get_embedding_dimension() or 0)
            self._longest = float(module.max_seq_length or inf)
            self._prompt = module.prompts.get(module.default_prompt_name) or ""  # before every text
            self._takes_more = module.modalities != ["text"]
            self._tokenizer: Any = deepcopy(module.tokenizer)  # of its own: `run` uses the other
        except (AttributeError, TypeError, ValueError) as error:
            raise LoadFailed(f"{self._name} cannot be loaded: {_told(error)}") from error
        self._alone = Lock()  # Hugging Face's tokenizers refuse a second thread
        self._is_tried = False
        return module  # type: ignore[no-any-return]

    def rounded(self, module: nn.Module) -> nn.Module:
        """As the library did already, but for networks that do not come from transformers.

        It leaves as they are what rounding would spoil: the tables of rotary positions, where the
        thousandth token of a long text would be off by a radian, and in float16 some layers of T5.
        """
        return module if module.dtype == self.dtype else super().rounded(module)

    def space(self) -> str:
        """Of a folder all that says what is done with its weights, in whatever file.

        Of a name on the hub what shows in the module's text, and the prompt, which does not.
        """
        told = f"{super().space()}\n{self.module}{self._prompt}"
        if (folder := self.entry.checkpoint) is None:
            return told
        files = (file for file in folder.rglob("*") if file.suffix in SETTINGS)
        return "\n".join((told, *content.lines(folder, files)))

    def prepare_text(self, text: str) -> PreparedText:
        if self._longest == inf:  # then its tokenizer may be of any kind
            return PreparedText(text, length=len(text))
        whole = self._prompt + text
        with self._alone:
            tokens = self._tokens(whole)
        length = int(min(tokens, self._longest))
        return PreparedText(text, truncated=self._longest < tokens, length=length)

    def _set_up_tokenizers(self, module: nn.Module) -> None:
        """Padding in front of a text moves it, and where positions are counted from the start of
        the row, its vector would depend on its neighbours. Behind it, nothing does; alone it has
        none.

        Raises:
            WeightsUnavailable: one has no words.
        """
        for part in module.modules():
            tokenizer: Any = getattr(part, "tokenizer", None)
            if vocabulary.is_empty(tokenizer):
                raise WeightsUnavailable(
                    f"{self._name} lacks the words of its tokenizer: {vocabulary.FILES}"
                )
            if hasattr(tokenizer, "padding_side"):
                tokenizer.padding_side = "right"

    def _tokens(self, text: str) -> int:
        if not callable(self._tokenizer):  # a list of words
            return len(self._tokenizer.tokenize(text))
        return len(self._tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        # A network that takes more than texts would open a text that reads like the name or the
        # address of a picture: of such ones it has to be said that they are texts.
        inputs = [{"text": text} for text in texts] if self._takes_more else list(texts)
        rows = self.module.encode(
            inputs,
            batch_size=len(texts),
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=False,
            device=str(self.device),
        )
        return np.asarray(rows, np.float32)

    def lift(self) -> None:
        """
        Raises:
            LoadFailed: as `TorchModel.lift`; or it can embed no text.
        """
        super().lift()
        if self._is_tried:
            return
        try:
            if self._looks_aside():
                self.traits = replace(self.traits, max_batch=1)
        except MemoryError:
            self.lower()
            raise
        self._is_tried = True

    def _looks_aside(self) -> bool:
        """Whether a text's vector depends on those that it is embedded with, as where a network
        looks at the padding: SigLIP, FNet, and what convolves."""
        try:
            rows = [self.prepare_text(text) for text in TEXTS]
            together = self.run(Kind.TEXT, rows)
            alone = np.concatenate([self.run(Kind.TEXT, [row]) for row in rows])
        except Exception as error:  # whatever a network makes of another's modules, or precision
            if isinstance(error, MemoryError) or is_beyond_repair(error):
                raise
            why = f"{type(error).__name__}: {first_line(error)}"
            raise LoadFailed(f"{self._name} cannot embed a text: {why}") from error
        if together.shape[1] != self.dimension:
            raise LoadFailed(
                f"{self._name} says that its vectors have {self.dimension} numbers, and they have "
                f"{together.shape[1]}"
            )
        lowest = lowest_cosine(together, alone)
        looks_aside = not lowest >= SAME[self.placement.precision]
        if looks_aside:
            log.info("%s runs a text at a time: %.5f with others", self._name, lowest)
        return looks_aside

    @torch.inference_mode()
    def _make_whole(self, module: Any) -> None:
        """Zeros for what the files lack, as they may of a pooler that nobody asks: transformers
        draws it, and each load would be a space of its own.

        Raises:
            BadCheckpoint: vectors depend on it.
        """
        lacking = {
            name: parameter
            for where, network in module.named_modules()
            if isinstance(network, PreTrainedModel)
            for name, parameter in network.named_parameters(where)
            if not getattr(parameter, "_is_hf_initialized", False)
        }
        if not lacking:
            return
        incomplete = f"{self._name} is not complete: {weights.differences(lacking, {})}"
        if not all(parameter.is_floating_point() for parameter in lacking.values()):
            raise BadCheckpoint(incomplete)  # quantised ones, which vectors do depend on
        for parameter in lacking.values():
            parameter.fill_(nan)
        if not np.isfinite(module.encode(list(TEXTS), show_progress_bar=False)).all():
            raise BadCheckpoint(incomplete)
        for parameter in lacking.values():
            parameter.zero_()

    @property
    def _name(self) -> str:
        return str(self.entry.checkpoint or self.entry.architecture)

    def _local(self) -> SentenceTransformer | None:
        """From the folder, or from an earlier download."""
        try:
            return self._read(offline=True)
        except OSError as error:
            if self.entry.checkpoint is None:
                return None
            raise WeightsUnavailable(
                f"{self._name} is not complete: {hub.plain(first_line(error))}"
            ) from error

    def _fetched(self) -> SentenceTransformer:
        what = f"the files of {self._name}"
        hub.require(what, ENDPOINT, offline=self.placement.offline, hint=NAME_FOLDER)
        try:
            return self._read(offline=False)
        except OSError as error:
            raise WeightsUnavailable(
                f"{self._name} could not be fetched: {hub.plain(first_line(error))}"
            ) from error

    def _read(self, *, offline: bool) -> SentenceTransformer:
        cache = self.placement.cache_dir
        try:
            return SentenceTransformer(
                self._name,
                device="cpu",
                cache_folder=str(cache / "hub") if cache else None,
                local_files_only=offline,
                trust_remote_code=False,
                # A pickle could run code.
                model_kwargs={"use_safetensors": True, "dtype": self.dtype},
            )
        except OSError:
            raise
        except weights.NO_PICKLE as error:  # weights of a module of its own, such as Dense
            raise weights.not_opened(f"a .bin of {self._name}", error) from None
        except Exception as error:  # whatever a wrong config makes of a constructor
            raise LoadFailed(f"{self._name} cannot be loaded: {_told(error)}") from error


def _told(error: Exception) -> str:
    """The library likes to say on the second line what is wrong."""
    return f"{hub.plain(' '.join(str(error).split())):.300}".rstrip(".")


def _numbers(file: Path) -> int:
    """How many there are in its tensors, whatever their type.

    Raises:
        BadCheckpoint: it is truncated or corrupt. WeightsUnavailable: it cannot be read.
    """
    try:
        with safe_open(file, framework="numpy") as tensors:
            names = tensors.keys()
            return sum(prod(tensors.get_slice(name).get_shape()) for name in names)
    except OSError as error:
        raise WeightsUnavailable(f"{file}: {error}") from None
    except SafetensorError as error:
        raise BadCheckpoint(f"{file} is truncated or corrupt: {error}") from None
