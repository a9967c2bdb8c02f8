"""Where the gateway listens, who may come in, and how much each may ask."""

import re
from ipaddress import ip_address
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from ..wire.errors import BadSettings
from ..wire.logs import LogSettings
from .passes import Pass


def _listed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [one.strip() for one in re.split("[,\n]", value) if one.strip()]


class GatewaySettings(LogSettings):
    """The gateway's own settings, beside where Redis is and how long to wait."""

    gateway_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    gateway_port: Annotated[int, Field(ge=0, le=65535)] = 7000
    # Any of them lets a caller in; a line each or commas between, see `Pass.parse`.
    gateway_tokens: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_listed)] = ()
    gateway_body_bytes: Annotated[int, Field(ge=1)] = 32 * 1024**2
    gateway_body_timeout_s: Annotated[float, Field(gt=0)] = 30.0  # for all of a body to arrive
    gateway_items: Annotated[int, Field(ge=1)] = 2048  # inputs of one request
    gateway_concurrency: Annotated[int, Field(ge=1)] = 64  # requests at work at once

    def guarded(self) -> Self:
        """These settings, if nobody is let in by mistake.

        Raises:
            BadSettings: others could reach the port and no token is configured, or one can be
                guessed.
        """
        if not self.gateway_tokens and not is_loopback(self.gateway_host):
            raise BadSettings(
                f"CLIPYARD_GATEWAY_HOST: {self.gateway_host} can be reached by others; set "
                "CLIPYARD_GATEWAY_TOKENS first, or listen on 127.0.0.1"
            )
        self.passes()
        return self

    def passes(self) -> list[Pass]:
        """The tokens with their limits.

        Raises:
            BadSettings: see `Pass.parse`.
        """
        return [Pass.parse(entry.get_secret_value()) for entry in self.gateway_tokens]


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
