"""`server.toml`: what the coordinator is told."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedpact.common.errors import UsageError
from fedpact.common.invitation import join_address

DEFAULT_PORT = 9443
_MIB = 1 << 20


class Settings(BaseModel):
    """`server.toml`.

    Attributes:
        host: the name or address by which institutions reach the coordinator.
        port: the port they dial, and the one that is listened on.
        listen: the address of this machine to listen on.
        database: an SQLAlchemy URL; None for `fedpact.db` in the folder.
        max_message_mib: the largest message that is let through, in MiB.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9.:_-]+$")]
    port: Annotated[int, Field(ge=1, le=65535)] = DEFAULT_PORT
    listen: str = "0.0.0.0"  # noqa: S104 - institutions come from outside
    database: str | None = None
    max_message_mib: Annotated[int, Field(ge=1, le=2048)] = 64

    @property
    def address(self) -> str:
        """What institutions dial."""
        return join_address(self.host, self.port)

    @property
    def max_message(self) -> int:
        """The largest message that is let through, in bytes."""
        return self.max_message_mib * _MIB


def parse_settings(values: dict[str, Any], where: str) -> Settings:
    """Check settings.

    Args:
        values: by key.
        where: what the error calls the place that they stand in.

    Raises:
        UsageError: a key is unknown or missing, or a value is not valid.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{where}: {key}: {first['msg']}.") from error
