"""Where the broker is and how long to wait; and how every settings class reads its values.

A value comes from the first of: an argument, the environment, the JSON file named by
CLIPYARD_CONFIG, the default. The environment name is CLIPYARD_ and the field's name in capitals;
`ALSO` lists the names that people have set already. The JSON file takes either, in capitals or not,
and the name of the field.
"""

import os
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasGenerator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import from_json, to_json
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from . import address
from .errors import OURS, BadSettings, ClipyardError, NoBroker
from .home import running_stack_url

LONGEST_S = 7 * 24 * 3600  # that a caller waits for an answer, or an answer for its caller
SHORTEST_SECRET = 16  # characters
PREFIX = "clipyard_"
CONFIG_VARIABLE = "CLIPYARD_CONFIG"
PASSWORDS = re.compile(r"(?<=://)[^\s'\"/@]*:[^\s'\"]*@|(?<=password=)[^\s'\"&]+")  # in addresses
USAGE = 2  # exit code of what cannot do as it is told; for a setting, starting again is in vain

_TRACKER = "model_usage_tracker_"
_PRESSURE = "lazy_loading_unloading_memory_pressure_"
ALSO: Mapping[str, tuple[str, ...]] = {
    "default_model": ("rag_clip_model", "clip_model_name"),
    "batch_size": ("clip_batch_size",),
    "decode_threads": ("clip_max_workers",),
    "gpu_memory_threshold_gb": ("clip_gpu_memory_threshold",),
    "keep_models": ("clip_enable_caching",),
    "fallback_to_cpu": ("clip_fallback_to_cpu",),
    "log_level": ("clip_log_level",),
    "sweeps_enabled": (f"{_TRACKER}enabled",),
    "sweep_interval_s": (f"{_TRACKER}cleanup_interval",),
    "vision_vram_timeout_s": (f"{_TRACKER}vision_embedding_vram_timeout",),
    "vision_ram_timeout_s": (f"{_TRACKER}vision_embedding_ram_timeout",),
    "text_vram_timeout_s": (f"{_TRACKER}embedding_model_vram_timeout",),
    "text_ram_timeout_s": (f"{_TRACKER}embedding_model_ram_timeout",),
    "pressure_threshold": (f"{_PRESSURE}threshold",),
    "pressure_timeout_s": (f"{_PRESSURE}timeout",),
    "cuda_visible_devices": ("cuda_visible_devices",),
}


def default_home() -> Path:
    """Where a person's own stack keeps its state (the XDG state directory)."""
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state")
    try:
        return state.expanduser() / "clipyard"
    except RuntimeError:  # of a user whom the machine does not know, as in a container
        return Path("/nonexistent/clipyard")


def names_of(field: str) -> tuple[str, ...]:
    """The names a setting is read by, in lower case, the first one wins."""
    return (PREFIX + field, *ALSO.get(field, ()))


def _keys_of(field: str) -> tuple[str, ...]:
    """The keys of the JSON file that it is read by, the first one wins."""
    names = names_of(field)
    return (*names, field, *map(str.upper, names))


class _ByField(PydanticBaseSettingsSource):
    """Looks for one field after the other."""

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields.items()
        values = {name: self.get_field_value(field, name)[0] for name, field in fields}
        return {PREFIX + name: value for name, value in values.items() if value is not None}


class _JsonFile(_ByField):
    """The JSON file: our names and the older ones; keys of other programs are left alone."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        found = _json_file(os.environ.get(CONFIG_VARIABLE, ""))
        for name in _keys_of(field_name):
            if name in found:
                return found[name], field_name, False
        return None, field_name, False


class _SecretFiles(_ByField):
    """CLIPYARD_REDIS_URL_FILE and its like: a secret that is in a file of its own."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        if not _is_secret(field) or self.current_state.keys() & {*_keys_of(field_name)}:
            return None, field_name, False  # or it is given otherwise
        if not (named := _secret_file(field_name)):
            return None, field_name, False
        *by, path = named
        try:
            secret = path.read_text().strip()
        except (OSError, ValueError) as error:
            raise BadSettings(f"{_place(*by)}: cannot read {path}: {error}") from None
        if not secret:  # as if there were none, everybody would be let in
            raise BadSettings(f"{_place(*by)}: {path} is empty")
        return secret, field_name, False


def _secret_file(secret: str) -> tuple[str, str, Path] | None:
    """The variable that names the file which a secret is in, or a key and its JSON file, in whose
    folder a relative path begins; then the path. None: there is no such file."""
    variable = f"{PREFIX}{secret}_file".upper()
    if path := os.environ.get(variable):
        return variable, "", _file(variable, path)
    config = os.environ.get(CONFIG_VARIABLE, "")
    for key in _keys_of(f"{secret}_file"):
        if path := _json_file(config).get(key):
            folder = _file(CONFIG_VARIABLE, config).parent
            return key, config, folder / _file(_place(key, config), str(path))
    return None


def _place(name: str, file: str) -> str:
    """Of a setting, as people find it again."""
    return f"{name} in {file}" if file else name


def _file(name: str, path: str) -> Path:
    try:
        return _expanded(Path(path))
    except ValueError as error:
        raise BadSettings(f"{name}: cannot read {path}: {error}") from None


def files() -> dict[str, str]:
    """The variables that name files with settings, for a process that stands in another folder.

    What cannot be found is left as it is, for whoever reads it to say so.
    """
    return {
        name: os.path.join(os.getcwd(), os.path.expanduser(path))
        for name, path in os.environ.items()
        if path and (name == CONFIG_VARIABLE or re.fullmatch("CLIPYARD_.+_FILE", name))
    }


def given() -> list[str]:
    """Every name with our prefix that the environment or the JSON file has, in capitals."""
    found = (*os.environ, *_json_file(os.environ.get(CONFIG_VARIABLE, "")))
    return sorted({name.upper() for name in found if name.lower().startswith(PREFIX)})


@cache
def _json_file(path: str) -> dict[str, Any]:
    if not path:
        return {}
    file = _file(CONFIG_VARIABLE, path)
    try:
        found = from_json(file.read_bytes())
    except OSError as error:
        raise BadSettings(f"{CONFIG_VARIABLE}: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise BadSettings(f"{CONFIG_VARIABLE}: {path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadSettings(f"{CONFIG_VARIABLE}: {path} must hold one JSON object")
    return found


class SettingsBase(BaseSettings):
    """Reads one part's settings; a wrong value raises BadSettings with a line per mistake."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        env_parse_enums=True,
        alias_generator=AliasGenerator(validation_alias=lambda name: AliasChoices(*names_of(name))),
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        files = _SecretFiles(settings_cls), _JsonFile(settings_cls)
        return init_settings, env_settings, *files

    def __init__(self, **given: Any) -> None:
        """The settings, or BadSettings.

        Args:
            given: values that win over the environment and the file, by field name, which may be
                that of the environment.

        Raises:
            TypeError: there is no such setting. Pydantic would leave it out.
        """
        known = type(self).model_fields
        given = {name.removeprefix(PREFIX): value for name, value in given.items()}
        if unknown := given.keys() - known.keys():
            wrong = ", ".join(sorted(unknown))
            raise TypeError(f"no setting {wrong}; there are {', '.join(known)}")
        try:
            super().__init__(**{PREFIX + field: value for field, value in given.items()})
        except ValidationError as error:
            lines = (self._line(mistake, given=given) for mistake in error.errors())
            raise BadSettings("\n".join(lines)) from None
        except (SettingsError, RecursionError) as error:
            field = re.search('field "(.+?)"', str(error))  # Pydantic's words, without the reason
            name = f"{PREFIX}{field[1] if field else '*'}".upper()
            raise BadSettings(
                f"{name}: it is no JSON; give several values as a list, as in "
                """CLIPYARD_IMAGE_ROOTS='["/data", "/mnt"]'"""
            ) from None

    @classmethod
    def read(cls, **given: Any) -> Self:
        """As the class itself, for which type checkers want a SecretStr where a URL is meant."""
        return cls(**given)

    @classmethod
    def _line(cls, mistake: Any, *, given: Mapping[str, Any]) -> str:
        """What is wrong, by the name that people find where they have set it."""
        field = str(mistake["loc"][0]).removeprefix(PREFIX)
        found = None if field in given else cls._found(field)
        name = _place(*found) if found else f"{PREFIX}{field}".upper()
        shown = PASSWORDS.sub("***", repr(mistake["input"]))
        value = "" if _is_secret(cls.model_fields[field]) else f" (it is {shown})"
        return f"{name}: {mistake['msg'].removeprefix(OURS)}{value}"

    def rows(self) -> list[dict[str, str]]:
        """Every setting with its environment name, value (secrets masked) and origin."""
        return [
            {
                "setting": names_of(field)[0].upper(),
                "value": _written(value),
                "origin": self.origin(field),
            }
            for field, value in self.model_dump(mode="json").items()
        ]

    def origin(self, field: str) -> str:
        """Where a setting's value came from: a variable's name, the JSON file's, `given` as an
        argument that neither of them has, or `default`."""
        if found := self._found(field):
            name, file = found
            return file or name
        return "given" if field in self.model_fields_set else "default"

    @classmethod
    def _found(cls, field: str) -> tuple[str, str] | None:
        """The variable that a setting is in, or its key and the JSON file; None: in neither."""
        told = {name.lower() for name, value in os.environ.items() if value}
        for name in names_of(field):
            if name in told:
                return name.upper(), ""
        if _is_secret(cls.model_fields[field]) and (named := _secret_file(field)):
            return named[:2]
        path = os.environ.get(CONFIG_VARIABLE, "")
        for name in _keys_of(field):
            if name in _json_file(path):
                return name, path
        return None


def _written(value: Any) -> str:
    """As it is written in the environment."""
    match value:
        case None:
            return "none"
        case str():
            return value
    return to_json(value).decode()


def cannot_start(error: ClipyardError) -> NoReturn:
    """End a process with the sentence alone, and a code that says: again would be in vain."""
    print(error, file=sys.stderr)
    sys.exit(USAGE)


def cannot_listen(part: str, address: str, why: str | None = None) -> BadSettings:
    """What a server raises that can have no port: its part's settings say where to listen."""
    told = f"{address}: {why}" if why else address
    host, port = (f"{PREFIX}{part}_{setting}".upper() for setting in ("host", "port"))
    return BadSettings(f"cannot listen on {told}; choose another {host} or {port}")


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr.__name__ in repr(field.annotation)


def _hard_to_guess(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < SHORTEST_SECRET:
        raise ValueError(
            f"it has fewer than {SHORTEST_SECRET} characters and could be guessed; "
            "make one with `openssl rand -hex 32`"
        )
    return secret


def _expanded(path: Path) -> Path:
    """No shell has seen a JSON file, or a variable of Compose or systemd."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(
            "there is no such user here, or none with a home; write all of it"
        ) from None


LocalPath = Annotated[Path, AfterValidator(_expanded)]  # of this machine; ~ is a person's home
Secret = Annotated[SecretStr, AfterValidator(_hard_to_guess)]
Interval = Annotated[float, Field(ge=0.1, le=LONGEST_S)]  # in s, at which beat sends a message


class Settings(SettingsBase):
    """What client, worker, beat and gateway all need to know."""

    redis_url: SecretStr | None = None  # None: the stack that `clipyard up` runs in `home`
    key_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")] = "clipyard"
    signing_key: Secret | None = None  # workers then refuse requests that it did not sign
    old_signing_key: Secret | None = None  # also accepted, while keys are changed
    home: LocalPath = Field(default_factory=default_home)
    answer_timeout_s: Annotated[float, Field(gt=0, le=LONGEST_S)] = 120.0
    answer_ttl_s: Annotated[int, Field(ge=1, le=LONGEST_S)] = 600  # it waits to be fetched so long
    chunk_size: Annotated[int, Field(ge=1, le=4096)] = 64  # items per message
    in_flight: Annotated[int, Field(ge=1, le=256)] = 8  # messages a call keeps unanswered
    sweeps_enabled: bool = True
    sweep_interval_s: Interval = 60.0
    tend_interval_s: Interval = 5.0  # how often bulk jobs are looked after

    @field_validator("redis_url")
    @classmethod
    def _usable(cls, url: SecretStr | None) -> SecretStr | None:
        if url:
            given = address.parsed(url.get_secret_value())
            for name in address.FILES & given.keys():
                if not os.access(given[name], os.R_OK):
                    raise ValueError(f"the file of {name}, {given[name]}, cannot be read")
        return url

    def url(self) -> str:
        """The Redis URL, password included: never log it, see `address.masked`.

        Raises:
            NoBroker: none is configured, and no stack runs in `home`.
        """
        url = self.redis_url.get_secret_value() if self.redis_url else running_stack_url(self.home)
        if not url:
            raise NoBroker(
                "no Redis is configured and no stack is running: "
                "start one with `clipyard up`, or set CLIPYARD_REDIS_URL"
            )
        # Unasked, Kombu would take any certificate, and Celery's backend would refuse to start.
        if url.startswith("rediss:") and "ssl_cert_reqs=" not in url:
            url += f"{'&' if '?' in url else '?'}ssl_cert_reqs=required"
        return url
