"""The gateway as one more process of the stack that `clipyard up` runs."""

import sys

from ..stack.up import Extra
from ..wire.address import netloc
from .settings import GatewaySettings

__all__ = ["extra"]

_GRACE_S = 40.0  # longer than it drains: who cannot be waited for is told so then


def extra() -> Extra:
    """As the settings say."""
    settings, env = GatewaySettings.read(), {}
    if logs := settings.log_dir:  # it stands in the checkout, as the workers do
        env = {"CLIPYARD_LOG_DIR": str(logs.absolute())}
    return Extra(
        name="gateway",
        argv=(sys.executable, "-m", "api_client", "gateway"),
        address=f"http://{netloc(settings.gateway_host, settings.gateway_port)}",
        env=env,
        grace_s=_GRACE_S,
        ready=lambda said: "Uvicorn running on" in said,
    )
