"""The dashboard as one more process of the stack that `clipyard up` runs."""

import secrets
import sys

from ..stack.up import Extra
from ..wire.address import netloc
from .settings import DashboardSettings

__all__ = ["WORKER_ENV", "extra"]

WORKER_ENV = {"CLIPYARD_TASK_EVENTS": "true"}


def extra() -> Extra:
    """As the settings say. A password that nobody configured is made, and shown once with it."""
    settings = DashboardSettings.read()
    at, env = netloc(settings.dashboard_host, settings.dashboard_port), {}
    address = f"http://{at}/models"
    if settings.dashboard_password is None:
        password = secrets.token_urlsafe(12)
        env = {"CLIPYARD_DASHBOARD_PASSWORD": password}
        address += f"  (user {settings.dashboard_user}, password {password})"
    argv = (sys.executable, "-m", "api_client", "dashboard")
    return Extra(
        name="flower",
        argv=argv,
        address=address,
        env=env,
        ready=lambda said: "the dashboard is ready." in said,
    )
