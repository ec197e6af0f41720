"""SuperLink's Control API, as far as the coordinator uses it.

Protobuf over HTTP on loopback, under the coordinator's own CA. Flower's `ControlHttpClient`
would do the same, but sends loopback traffic to the proxy where HTTPS_PROXY is set.
"""

import hashlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import httpx

from fedpact.common.errors import AddressError, RunError, TrustError
from fedpact.server.home import ServerHome

if TYPE_CHECKING:
    from flwr.proto.transport_pb2 import Scalar


class _Message(Protocol):
    """What is used of a protobuf message (protobuf itself comes without types)."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802
    def ParseFromString(self, serialized: bytes) -> object: ...  # noqa: N802


_Answer = TypeVar("_Answer", bound=_Message)
Value = str | bool | int | float
_MEDIA_TYPE = "application/protobuf"
_TIMEOUT_SECONDS = 10.0
# flwr.supercore.error.ApiErrorCode
_KEY_IN_USE = 23
_NODE_NOT_FOUND = 24
_UNREGISTERED = "unregistered"


@dataclass(frozen=True)
class FlowerRun:
    """What Flower says of a run.

    Attributes:
        status: pending, starting, running or finished.
        sub_status: completed, failed or stopped once it is finished.
        details: why it failed.
    """

    status: str
    sub_status: str
    details: str

    @property
    def is_finished(self) -> bool:
        """Whether it has ended."""
        return self.status == "finished"


@dataclass(frozen=True)
class Node:
    """A site's node as SuperLink knows it.

    Attributes:
        public_key: PEM.
        node_id: an unsigned 64-bit number.
        status: registered (never seen), online, offline or unregistered.
    """

    public_key: bytes
    node_id: int
    status: str

    @property
    def is_registered(self) -> bool:
        """Whether it may come back."""
        return self.status != _UNREGISTERED


class _Refused(RunError):  # noqa: N818 - named for what happened
    """SuperLink refused; `code` is Flower's ApiErrorCode (0: it gave none)."""

    code = 0


class Control:
    """A connection to SuperLink's Control API; close it, or use it in a `with`."""

    def __init__(self, address: str, ca: Path) -> None:
        self._http = httpx.Client(
            base_url=f"https://{address}/v1/control/",
            verify=ssl.create_default_context(cafile=ca),
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,
        )

    @classmethod
    def of(cls, home: ServerHome) -> Self:
        """Connect to the SuperLink that `fedpact server up` runs over a folder.

        Raises:
            AddressError: nobody is serving from that folder.
        """
        serving = home.serving()
        if serving is None:
            raise AddressError(
                f"No coordinator is up in {home.folder}.",
                advice="`fedpact server up` starts it.",
            )
        return cls(serving.superlink, home.ca)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def register_node(self, public_key: bytes) -> int:
        """Let a site's node in; one that is known already keeps its id.

        Args:
            public_key: the site's, PEM.

        Returns:
            the node's id.

        Raises:
            AddressError: SuperLink is away.
            TrustError: the key was a node's that was unregistered; SuperLink takes it no more.
            RunError: SuperLink refuses the key.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest, RegisterNodeResponse

        try:
            answer = self._call(
                "register-node",
                RegisterNodeRequest(public_key=public_key),
                RegisterNodeResponse(),
            )
        except _Refused as error:
            if error.code != _KEY_IN_USE:
                raise
            node = next(n for n in self.nodes() if n.public_key == public_key)
            if not node.is_registered:
                raise TrustError(
                    "This node key was shut out before.",
                    advice="Join with another folder: it makes new keys.",
                ) from error
            return node.node_id
        return answer.node_id

    def unregister_node(self, node_id: int) -> None:
        """Have SuperLink forget a node; one that it does not know stays forgotten.

        Raises:
            AddressError: SuperLink is away.
        """
        from flwr.proto.control_pb2 import UnregisterNodeRequest, UnregisterNodeResponse

        try:
            self._call(
                "unregister-node",
                UnregisterNodeRequest(node_id=node_id),
                UnregisterNodeResponse(),
            )
        except _Refused as error:
            if error.code != _NODE_NOT_FOUND:
                raise

    def nodes(self) -> list[Node]:
        """Every site that SuperLink knows.

        Raises:
            AddressError: SuperLink is away.
        """
        from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse

        answer = self._call("list-nodes", ListNodesRequest(), ListNodesResponse())
        return [Node(n.public_key, n.node_id, n.status) for n in answer.nodes_info]

    def start_run(self, fab: bytes, config: Mapping[str, Value]) -> int:
        """Have SuperLink start a process for a run.

        Args:
            fab: the app (`fedpact.server.fab`).
            config: the run's configuration; sites may read it. Each key must stand in the
                app's own configuration.

        Returns:
            Flower's run id.

        Raises:
            AddressError: SuperLink is away.
            RunError: SuperLink refuses the app.
        """
        from flwr.proto.control_pb2 import StartRunRequest, StartRunResponse
        from flwr.proto.fab_pb2 import Fab

        request = StartRunRequest(
            fab=Fab(hash_str=hashlib.sha256(fab).hexdigest(), content=fab),
            override_config={key: _scalar(value) for key, value in config.items()},
        )
        run_id = self._call("start-run", request, StartRunResponse()).run_id
        if not run_id:
            raise RunError("SuperLink did not start the run.", advice="See its log.")
        return run_id

    def stop_run(self, run_id: int) -> None:
        """Have SuperLink end a run's process.

        Raises:
            AddressError: SuperLink is away.
            RunError: there is no such run, or it has ended.
        """
        from flwr.proto.control_pb2 import StopRunRequest, StopRunResponse

        self._call("stop-run", StopRunRequest(run_id=run_id), StopRunResponse())

    def run_status(self, run_id: int) -> FlowerRun:
        """What SuperLink says of a run.

        Raises:
            AddressError: SuperLink is away.
            RunError: there is no such run.
        """
        from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse

        answer = self._call("list-runs", ListRunsRequest(run_id=run_id), ListRunsResponse())
        status = answer.run_dict[run_id].status
        return FlowerRun(status.status, status.sub_status, status.details)

    def _call(self, name: str, request: _Message, answer: _Answer) -> _Answer:
        try:
            response = self._http.post(
                name,
                content=request.SerializeToString(),
                headers={"content-type": _MEDIA_TYPE, "accept": _MEDIA_TYPE},
            )
        except httpx.TransportError as error:
            raise AddressError(f"SuperLink does not answer: {error}.") from error
        if response.is_error:
            raise _refused(name, response)
        answer.ParseFromString(response.content)
        return answer


def _refused(name: str, response: httpx.Response) -> _Refused:
    try:
        content = dict(response.json())
    except ValueError:
        content = {}
    details = " ".join(str(content[key]) for key in ("detail", "extra") if key in content)
    error = _Refused(f"SuperLink refuses {name}: {details or response.status_code}")
    error.code = int(content.get("code", 0))
    return error


def _scalar(value: Value) -> "Scalar":
    from flwr.proto.transport_pb2 import Scalar

    match value:
        case bool():
            return Scalar(bool=value)
        case int():
            return Scalar(sint64=value)
        case float():
            return Scalar(double=value)
        case str():
            return Scalar(string=value)
