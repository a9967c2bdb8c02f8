"""The models that may be asked for. Add one in catalogue.toml or a file of your own; no code."""

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from api_client.wire.errors import BadSettings, UnknownModel, first_mistake, nearest
from api_client.wire.messages import CatalogueEntry, Kind

BUILT_IN = Path(__file__).with_name("catalogue.toml")
DESCRIBED_KEPT = 1024  # a family may describe any id, a mistyped one too

LARGEST_GB = 1e6  # neither infinity nor bytes in the place of gigabytes

AtRest = Literal["int8"]

# Hugging Face names that people have -> the open_clip id of the same weights.
HUGGING_FACE = {
    "openai/clip-vit-base-patch32": "ViT-B-32/openai",
    "openai/clip-vit-base-patch16": "ViT-B-16/openai",
    "openai/clip-vit-large-patch14": "ViT-L-14/openai",
    "openai/clip-vit-large-patch14-336": "ViT-L-14@336px/openai",
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": "ViT-B-32/laion2b_s34b_b79k",
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K": "ViT-L-14/laion2b_s32b_b82k",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "ViT-H-14/laion2b_s32b_b79k",
}


@dataclass(frozen=True)
class Entry:
    """One model that may be asked for.

    Attributes:
        id: as shown to people, `architecture/tag`.
        backend: the family that knows how to load it.
        architecture: the family's own name for the shape of the model, or a path to its JSON
            config (relative to the file that names it).
        tag: which weights, for families that name them.
        checkpoint: a local file of weights, instead of the tag's.
        sha256: of the checkpoint, in hex; checked before loading where given.
        dimension: length of a vector; 0 when unknown before loading.
        input_size: pixels along one edge; None for models without images.
        memory_gb: device memory, 10^9 bytes, a first guess only; the ledger measures.
        context_chars: about so many characters of a text are seen; 0 when unknown.
        multilingual: whether texts in other scripts than Latin are understood.
        at_rest: hold the weights so while they wait in host memory, for families that can. They
            are rounded by it from the first lift on, so the fingerprint is another one.
        kinds: what it embeds. A model that embeds images counts as a vision model.
        options: whatever else the family understands.
    """

    id: str
    backend: str = "open_clip"
    architecture: str = ""
    tag: str = ""
    checkpoint: Path | None = None
    sha256: str = ""
    name: str = ""
    description: str = ""
    recommended_use: str = ""
    dimension: Annotated[int, Field(ge=0)] = 0
    input_size: Annotated[int, Field(ge=1)] | None = None
    memory_gb: Annotated[float, Field(ge=0, le=LARGEST_GB)] = 0.0
    performance_rating: str = ""
    context_chars: Annotated[int, Field(ge=0)] = 0
    multilingual: bool = False
    at_rest: AtRest | None = None
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = (Kind.IMAGE, Kind.TEXT)
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def is_vision(self) -> bool:
        return Kind.IMAGE in self.kinds

    @property
    def memory_bytes(self) -> int:
        """As `memory_gb` guesses; 0 when unknown."""
        return int(self.memory_gb * 1e9)

    def public(self) -> CatalogueEntry:
        """What a client is told of it."""
        told = vars(self) | {"name": self.name or self.id, "family": self.backend}
        return CatalogueEntry.model_validate(told, extra="ignore")


_ENTRY = TypeAdapter(Entry)


def sound(entry: Entry) -> Entry:
    """The same with each field of its type, whoever wrote it.

    Raises:
        ValueError: one cannot be made so.
    """
    try:
        checked = _ENTRY.validate_python(vars(entry))
    except ValidationError as error:
        raise ValueError(first_mistake(error)) from None
    return replace(entry, **{field.name: getattr(checked, field.name) for field in fields(Entry)})


class Catalogue:
    """Looks models up by id or alias.

    Args:
        entries: of the files, later ones win. An alias that is another entry's id, or a later
            entry's alias too, is dropped. `HUGGING_FACE` is aliases as well.
        describe: an entry for an id that is not listed, or None; of one that was described once it
            is never asked again, for every request looks its model up.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        *,
        describe: Callable[[str], Entry | None] = lambda model_id: None,
    ) -> None:
        by_id = {entry.id: entry for entry in entries}
        given = {alias: entry.id for entry in by_id.values() for alias in entry.aliases}
        aliases = {**HUGGING_FACE, **given}
        self._aliases = {alias: id for alias, id in aliases.items() if alias not in by_id}
        self._entries = {entry.id: self._with_its_aliases(entry) for entry in by_id.values()}
        self._describe = describe
        self._described = lru_cache(DESCRIBED_KEPT)(self._describe_or_refuse)

    @classmethod
    def read(cls, *files: Path) -> "Catalogue":
        """The entries of TOML files, each a table named by the model's id.

        Raises:
            BadSettings: a file cannot be read or an entry has an unknown or unusable field.
        """
        return cls(entry for file in files for entry in _entries(file))

    def __getitem__(self, model_id: str) -> Entry:
        known = self._aliases.get(model_id, model_id)
        return self._entries.get(known) or self._described(known)

    def _with_its_aliases(self, entry: Entry) -> Entry:
        own = tuple(alias for alias, id in self._aliases.items() if id == entry.id)
        return replace(entry, aliases=own)

    def _describe_or_refuse(self, known: str) -> Entry:
        if (entry := self._describe(known)) is not None:
            return entry
        listed = [*self._entries, *self._aliases]
        all_of_them = f"known are {', '.join(self._entries)}"
        hint = nearest(known, listed, otherwise=all_of_them, cutoff=0.4)
        raise UnknownModel(f"no model {known!r}; {hint}")

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())


def _entries(file: Path) -> Iterable[Entry]:
    try:
        table = tomllib.loads(file.read_text())
    except OSError as error:
        raise BadSettings(f"catalogue {file}: {error.strerror}") from None
    except RecursionError:
        raise BadSettings(f"catalogue {file}: nested too deeply") from None
    except ValueError as error:
        raise BadSettings(f"catalogue {file}: {error}") from None
    for model_id, row in table.items():
        yield _entry(file, model_id, row)


def _entry(file: Path, model_id: str, row: Any) -> Entry:
    try:
        fields = dict(row)
        if "checkpoint" in fields:
            fields["checkpoint"] = file.parent / Path(fields["checkpoint"]).expanduser()
        if str(fields.get("architecture", "")).endswith(".json"):
            fields["architecture"] = str(file.parent / Path(fields["architecture"]).expanduser())
        return sound(Entry(id=model_id, **fields))
    except (TypeError, ValueError, RuntimeError) as error:  # the last for the home of ~nobody
        raise BadSettings(f"catalogue {file}: entry {model_id!r}: {error}") from None
