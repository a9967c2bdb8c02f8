"""Where the dashboard listens, who may come in, and whether they may change anything."""

from typing import Annotated, Self

from pydantic import Field, SecretStr

from ..wire.errors import BadSettings
from ..wire.settings import Settings

SHORTEST_PASSWORD = 12  # characters
USER = "clipyard"


class DashboardSettings(Settings):
    """The dashboard's own settings, beside where Redis is."""

    dashboard_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    dashboard_port: Annotated[int, Field(ge=0, le=65535)] = 5555
    dashboard_user: Annotated[str, Field(pattern=r"^[^:\s]+$")] = USER
    dashboard_password: SecretStr | None = None  # `clipyard up --flower` makes one
    dashboard_read_only: bool = False  # nobody can load, unload, set, or stop a worker

    def guarded(self) -> Self:
        """These settings, if nobody is let in by mistake.

        Raises:
            BadSettings: no password is configured, or one that can be guessed.
        """
        password = self.dashboard_password
        if password is None or len(password.get_secret_value()) < SHORTEST_PASSWORD:
            raise BadSettings(
                "CLIPYARD_DASHBOARD_PASSWORD: the dashboard can stop workers, so it wants a "
                f"password of {SHORTEST_PASSWORD} characters or more; try `openssl rand -hex 12`"
            )
        return self

    @property
    def login(self) -> str:
        """`user:password`, as HTTP's basic authentication has it. Never log it."""
        password = self.dashboard_password
        return f"{self.dashboard_user}:{password.get_secret_value() if password else ''}"
