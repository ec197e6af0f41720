"""`server.toml`: what the coordinator is told."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedpact.common.errors import UsageError
from fedpact.common.invitation import join_address

DEFAULT_PORT = 9443
DEFAULT_SERVICE_PORT = 9444
_MIB = 1 << 20


class Settings(BaseModel):
    """`server.toml`.

    Attributes:
        host: the name or address by which institutions reach the coordinator.
        port: the port that their daemons dial: the gateway's.
        service_port: the port of the control plane: joining, studies, decisions.
        listen: the address of this machine to listen on.
        database: an SQLAlchemy URL; None for `fedpact.db` in the folder.
        max_message_mib: the largest message that is let through, in MiB.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9.:_-]+$")]
    port: Annotated[int, Field(ge=1, le=65535)] = DEFAULT_PORT
    service_port: Annotated[int, Field(ge=1, le=65535)] = DEFAULT_SERVICE_PORT
    listen: str = "0.0.0.0"  # noqa: S104 - institutions come from outside
    database: str | None = None
    max_message_mib: Annotated[int, Field(ge=1, le=2048)] = 64

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.port == self.service_port:
            raise ValueError("port and service_port are the same")
        return self

    @property
    def address(self) -> str:
        """What institutions' daemons dial: the gateway."""
        return join_address(self.host, self.port)

    @property
    def service_address(self) -> str:
        """Where institutions reach the control plane."""
        return join_address(self.host, self.service_port)

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
        key = "".join(f"{part}: " for part in first["loc"])
        raise UsageError(f"{where}: {key}{first['msg']}.") from error
