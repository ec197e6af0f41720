"""The resident node: a site's side of Flower, in one process that stays.

Flower's own SuperNode starts a Python process for every message and runs the code that the
coordinator ships. This node speaks Flower's Fleet protocol itself, keeps model and data
warm, and runs only the code that the site installed. It never ends because a connection was
lost: it says why, waits, and dials again.

What Flower does not call public is used in this file alone and pinned by a contract test:
`FleetHttpClient`, its interceptors, `HeartbeatSender`, and the objects of
`flwr.supercore.inflatable`. (Flower's `http_request_response` does the same as `_connect`,
but ends the process when SuperLink refuses it; see docs/adr/0002.)
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedpact.client.held import StoppingError
from fedpact.common import wire
from fedpact.common.errors import AddressError, TrustError
from fedpact.common.wire import RECORD

log = logging.getLogger(__name__)

_POLL_SECONDS = (0.05, 0.5)  # the shortest and the longest rest between two looks
_RETRY_SECONDS = (1.0, 30.0)
_CONNECTION_ERRORS = (httpx.HTTPError, ObjectPullError, ObjectPushError, OSError)

_NOT_ACCEPTED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
# The version of Flower that this site speaks.
FLOWER_VERSION = version("flwr")

KeyPair = tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]
Answer = Callable[[wire.Packet], wire.Packet]


@dataclass(frozen=True)
class Coordinator:
    """Where the coordinator is and what proves it.

    Attributes:
        address: host:port of the gateway.
        ca: the coordinator's CA certificate, PEM.
        keys: this site's key pair for Flower's node authentication (EC P-384).
        node_id: this site's number at SuperLink.
    """

    address: str
    ca: bytes
    keys: KeyPair
    node_id: int


def knock(coordinator: Coordinator) -> None:
    """Make sure that SuperLink takes calls with this site's key, and change nothing by it.

    A run that does not exist is asked for: SuperLink says so only to a node whose signature
    and number it has checked. (A heartbeat would make a site that is down look online.)

    Raises:
        TrustError: the key is not accepted.
        AddressError: gateway or SuperLink do not answer.
    """
    private_key, public_key = coordinator.keys
    with FleetHttpClient.from_server_address(
        coordinator.address,
        insecure=False,
        root_certificates=coordinator.ca,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(private_key, public_key),
        ],
    ) as client:
        try:
            client.GetRun(GetRunRequest(node=Node(node_id=coordinator.node_id), run_id=0))
        except httpx.HTTPStatusError as error:
            answer = error.response
            answered = "code" in _json(answer)  # Flower's own error, not the gateway's
            if answered and answer.status_code != httpx.codes.UNAUTHORIZED:
                return
            if answer.status_code in _NOT_ACCEPTED:
                raise TrustError(
                    "The coordinator does not accept this site's key.",
                    advice="Ask it whether the site was revoked; then join with a new token.",
                ) from error
            raise AddressError(
                f"SuperLink does not answer: {_reason(error)}.",
                advice="Wait a minute; then the coordinator must look at its SuperLink.",
            ) from error
        except httpx.TransportError as error:
            raise AddressError(f"The gateway does not answer: {_reason(error)}.") from error


def _json(response: httpx.Response) -> dict[str, object]:
    try:
        return dict(response.json())
    except (ValueError, TypeError):
        return {}


class Watcher:
    """Is told what becomes of the connection; this one does nothing with it."""

    def connected(self) -> None:
        """The coordinator has let us in."""

    def heard(self) -> None:
        """The coordinator has answered."""

    def lost(self) -> None:
        """The connection is gone."""


_NOBODY = Watcher()


def serve(
    coordinator: Callable[[], Coordinator],
    answer: Answer,
    stop: threading.Event,
    watcher: Watcher = _NOBODY,
) -> None:
    """Answer requests until `stop` is set, whatever the connection does.

    Args:
        coordinator: where to dial, and with which keys; asked before each dialling, since
            they may have changed.
        answer: makes a reply of a request.
        stop: set it to end, within a moment.
        watcher: is told what becomes of the connection.
    """
    shortest, longest = _RETRY_SECONDS
    rest = shortest
    node_id, hand = None, _Hand()
    while not stop.is_set():
        present = coordinator()
        anew = present.node_id != node_id
        if anew:
            hand = _Hand()
        try:
            with _connect(present, anew=anew) as link:
                log.info("connected to %s", present.address)
                node_id = present.node_id
                rest = shortest
                watcher.connected()
                _serve_link(link, hand, answer, stop, watcher)
        except _CONNECTION_ERRORS as error:
            watcher.lost()
            log.warning(
                "no connection to %s: %s; trying again in %.0f s",
                present.address,
                _reason(error),
                rest,
            )
            stop.wait(rest)
            rest = min(2 * rest, longest)


@dataclass
class _Hand:
    """The message that is being answered, kept from one connection to the next.

    Attributes:
        message: as it was announced; None: nothing is in hand.
        tree: its objects.
        reply: its answer, once there is one. It is sent anew as the very same message: to
            SuperLink another one would be a second answer, which it does not take, and the
            first would never be whole.
    """

    message: Message | None = None
    tree: ObjectTree | None = None
    reply: Message | None = None


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        match error.response.status_code:
            case status if status in _NOT_ACCEPTED:
                return "the coordinator does not accept this site's key (was it revoked?)"
            case httpx.codes.BAD_GATEWAY | httpx.codes.SERVICE_UNAVAILABLE:
                return "the coordinator is starting or its SuperLink is away"
            case status:
                return f"the coordinator answers {status}: {error.response.text[:200]}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@dataclass(frozen=True)
class _Link:
    """An activated node's connection."""

    client: FleetHttpClient
    node: Node


@contextmanager
def _connect(coordinator: Coordinator, *, anew: bool) -> Iterator[_Link]:
    """Dial, keep the node's heartbeat up; deactivate it at the end, unless it will dial again.

    SuperLink takes a node for online until its heartbeat has been missing for a minute, and
    refuses to activate it meanwhile. So that a crash does not cost that minute, the node
    first says that its last incarnation is gone.

    Args:
        coordinator: where to dial.
        anew: whether this is another incarnation for SuperLink: the coordinator then gives up
            what it asked the last one. A node that only lost its connection stays the same
            one, and answers what waits for it.
    """
    private_key, public_key = coordinator.keys
    node = Node(node_id=coordinator.node_id)
    with FleetHttpClient.from_server_address(
        coordinator.address,
        insecure=False,
        root_certificates=coordinator.ca,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(private_key, public_key),
        ],
    ) as client:
        if anew:
            _deactivate(client, node)
            client.ActivateNode(
                ActivateNodeRequest(
                    public_key=public_key_to_bytes(public_key),
                    heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL,
                )
            )
        else:
            # Nothing else would say so soon that the coordinator is still away.
            _send_heartbeat(client, node)
        leaves = True
        heartbeat = HeartbeatSender(lambda: _beat(client, node))
        heartbeat.start()
        try:
            yield _Link(client, node)
        except _CONNECTION_ERRORS:
            leaves = False
            raise
        finally:
            if heartbeat.is_running:
                heartbeat.stop()
            if leaves:
                _leave(client, node)


def _leave(client: FleetHttpClient, node: Node) -> None:
    try:
        _deactivate(client, node)
    except httpx.TransportError as error:
        log.debug("not deactivated: %s", error)


def _deactivate(client: FleetHttpClient, node: Node) -> None:
    try:
        client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
    except httpx.HTTPStatusError as error:
        log.debug("not deactivated: it was not online (%s)", error)


def _send_heartbeat(client: FleetHttpClient, node: Node) -> None:
    client.SendNodeHeartbeat(
        SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
    )


def _beat(client: FleetHttpClient, node: Node) -> bool:
    """One heartbeat; False asks the sender to try again soon.

    A heartbeat that the coordinator does not accept is left to the main loop, whose next
    call fails for the same reason and says so.
    """
    try:
        _send_heartbeat(client, node)
    except httpx.TransportError:
        return False
    except httpx.HTTPStatusError as error:
        log.debug("heartbeat refused: %s", error)
    return True


def _serve_link(
    link: _Link,
    hand: _Hand,
    answer: Answer,
    stop: threading.Event,
    watcher: Watcher = _NOBODY,
) -> None:
    shortest, longest = _POLL_SECONDS
    rest = shortest
    while not stop.is_set():
        if hand.message is not None:
            _finish(link, hand, answer)
            continue
        response = link.client.PullMessages(PullMessagesRequest(node=link.node))
        watcher.heard()
        if response.messages_list:
            hand.message = message_from_proto(response.messages_list[0])
            hand.tree, hand.reply = response.message_object_trees[0], None
            rest = shortest
        else:
            stop.wait(rest)
            rest = min(1.3 * rest, longest)


def _finish(link: _Link, hand: _Hand, answer: Answer) -> None:
    """Answer the message in hand; if the connection is lost meanwhile, it stays in hand.

    An answer that the coordinator does not want any more, since its run has ended, is put
    away: it is in the outbox.
    """
    assert hand.message is not None and hand.tree is not None  # noqa: S101, PT018 - for mypy
    try:
        if hand.reply is None:
            packet = answer(_pull(link, hand.message, hand.tree))
            hand.reply = _reply(packet, hand.message)
        _push(link, hand.reply)
    except StoppingError:
        # Unanswered: to the coordinator the site is lost, and is asked again when it is back.
        return
    except (ObjectPullError, ObjectPushError) as error:
        log.warning("an answer is not wanted any more: %s", error)
    except httpx.HTTPStatusError as error:
        if error.response.is_server_error:
            raise
        log.warning("an answer is not wanted any more: %s", error.response.text[:200])
    hand.message = None


def _pull(link: _Link, message: Message, tree: ObjectTree) -> wire.Packet:
    """Pull a message's objects and take our packet out of them."""
    run_id, message_id = message.metadata.run_id, message.metadata.message_id
    contents = pull_objects(
        [node.object_id for node in iterate_object_tree(tree)],
        pull_object_fn=make_pull_object_fn_protobuf(link.client.PullObject, link.node, run_id),
        initial_backoff=_POLL_SECONDS[0],
    )
    make_confirm_message_received_fn_protobuf(
        link.client.ConfirmMessageReceived, link.node, run_id
    )(message_id)
    whole = inflate_object_from_contents(message_id, contents)
    content = whole.content if isinstance(whole, Message) and whole.has_content() else None
    return wire.Packet.of(content.config_records.get(RECORD, {}) if content else {})


def _reply(packet: wire.Packet, request: Message) -> Message:
    """A packet as the message that answers a request."""
    reply = Message(RecordDict({RECORD: ConfigRecord({**packet.fields()})}), reply_to=request)
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply


def _push(link: _Link, reply: Message) -> None:
    """Send a reply, and those of its objects that SuperLink does not have."""
    with no_object_id_recompute():
        response = link.client.PushMessages(
            PushMessagesRequest(
                node=link.node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],
            )
        )
        push_objects(
            get_all_nested_objects(reply),
            push_object_fn=make_push_object_fn_protobuf(
                link.client.PushObject,
                link.node,
                reply.metadata.run_id,
                response.session_id,
            ),
            object_ids_to_push=set(response.objects_to_push),
        )
