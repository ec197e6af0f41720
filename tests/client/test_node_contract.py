"""What `client/node.py` takes from Flower that Flower does not promise to keep.

Everything here fails loudly on any Flower but the pinned one. Whoever raises the pin reads
Flower's changes to these modules first, then changes `TESTED` and what it shows to be needed.
"""

import ast
import importlib
import inspect
import threading
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
)
from flwr.supercore.task_identity import TaskIdentity

from fedpact.client import node
from fedpact.client.held import StoppingError
from fedpact.common import certificates, wire
from fedpact.server import app as server_app
from support.processes import wait_for

TESTED = "1.41."


def test_flower_is_the_one_that_the_node_was_tested_with():
    assert version("flwr").startswith(TESTED), (
        f"client/node.py leans on parts of Flower {TESTED}x that are not public; this is "
        f"{version('flwr')}. Read the docstring of this file."
    )


def test_every_name_that_the_node_takes_from_flower_is_there():
    tree = ast.parse(Path(node.__file__).read_text(encoding="utf-8"))
    taken = [
        (statement.module, name.name)
        for statement in ast.walk(tree)
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("flwr")
        for name in statement.names
    ]
    assert len(taken) > 20
    for module, name in taken:
        assert hasattr(importlib.import_module(module), name), (
            f"{module} has no {name} any more"
        )


def test_nothing_else_at_the_site_knows_flower():
    folder = Path(node.__file__).parent
    assert [
        path.name for path in folder.rglob("*.py") if "flwr" in path.read_text(encoding="utf-8")
    ] == ["node.py"]


ANY = object()
CALLS = {
    "FleetHttpClient.from_server_address": (
        (ANY,),
        {"insecure": False, "root_certificates": b"", "interceptors": []},
    ),
    "RuntimeVersionHttpInterceptor": ((), {"component_name": "SuperNode"}),
    "NodeAuthHttpInterceptor": ((ANY, ANY), {}),
    "HeartbeatSender": ((ANY,), {}),
    "pull_objects": (([], ANY), {"initial_backoff": 0.05}),
    "push_objects": (({},), {"push_object_fn": ANY, "object_ids_to_push": set()}),
    "make_pull_object_fn_protobuf": ((ANY, ANY, 1), {}),
    "make_push_object_fn_protobuf": ((ANY, ANY, 1, "session"), {}),
    "make_confirm_message_received_fn_protobuf": ((ANY, ANY, 1), {}),
    "inflate_object_from_contents": (("id", {}), {}),
    "get_object_tree": ((ANY,), {}),
    "get_all_nested_objects": ((ANY,), {}),
    "iterate_object_tree": ((ANY,), {}),
    "no_object_id_recompute": ((), {}),
    "public_key_to_bytes": ((ANY,), {}),
    "remove_content_from_message": ((ANY,), {}),
    "message_from_proto": ((ANY,), {}),
    "message_to_proto": ((ANY,), {}),
    **{
        f"FleetHttpClient.{name}": ((ANY, ANY), {})
        for name in (
            "ActivateNode",
            "DeactivateNode",
            "PullMessages",
            "PushMessages",
            "PullObject",
            "PushObject",
            "ConfirmMessageReceived",
            "SendNodeHeartbeat",
        )
    },
}


@pytest.mark.parametrize("name", CALLS)
def test_it_can_still_be_called_as_the_node_calls_it(name):
    called: object = node
    for part in name.split("."):
        called = getattr(called, part)
    args, kwargs = CALLS[name]
    inspect.signature(called).bind(*args, **kwargs)


def test_errors_of_objects_are_errors_of_the_connection():
    assert issubclass(ObjectPullError, Exception)
    assert {ObjectPullError, ObjectPushError} <= set(node._CONNECTION_ERRORS)


def test_flowers_node_keys_are_ours():
    key = certificates.new_key().public_key()
    assert node.public_key_to_bytes(key) == certificates.public_pem(key)


class Fleet:
    """SuperLink's Fleet API in memory, as far as the node uses it: one request waits."""

    def __init__(self, packet: wire.Packet) -> None:
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        request = Message(server_app.to_record(packet), 5, "train")
        request.metadata.__dict__["_message_id"] = request.object_id
        self._message = request
        self._objects = {
            name: found.deflate() for name, found in get_all_nested_objects(request).items()
        }
        self._waits = True
        self.received: list[str] = []
        self.reply: Message | None = None
        self.answers: list[str] = []
        self.breaks_after: int | None = None  # so many objects that came
        self._came: dict[str, bytes] = {}
        self._reply_id = ""
        self._missing: set[str] = set()

    def PullMessages(self, _request: object) -> PullMessagesResponse:
        if not self._waits:
            return PullMessagesResponse()
        self._waits = False
        return PullMessagesResponse(
            messages_list=[message_to_proto(remove_content_from_message(self._message))],
            message_object_trees=[get_object_tree(self._message)],
        )

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        content = self._objects[request.object_id]
        return PullObjectResponse(
            object_found=True, object_available=True, object_content=content
        )

    def ConfirmMessageReceived(
        self, request: ConfirmMessageReceivedRequest
    ) -> ConfirmMessageReceivedResponse:
        self.received.append(request.message_object_id)
        return ConfirmMessageReceivedResponse()

    def PushMessages(self, request: PushMessagesRequest) -> PushMessagesResponse:
        (tree,) = request.message_object_trees
        self._reply_id = request.messages_list[0].metadata.message_id
        assert request.messages_list[0].metadata.reply_to_message_id == (
            self._message.metadata.message_id
        )
        if self._reply_id not in self.answers:
            self.answers.append(self._reply_id)
        tree_ids = {found.object_id for found in iterate_object_tree(tree)}
        # A second answer to the same message is not taken, and nothing of it is wanted.
        self._missing = tree_ids - self._came.keys() if len(self.answers) == 1 else set()
        return PushMessagesResponse(objects_to_push=sorted(self._missing), session_id="session")

    def PushObject(self, request: PushObjectRequest) -> PushObjectResponse:
        if self.breaks_after == len(self._came):
            self.breaks_after = None
            raise httpx.ReadError("lost")
        self._came[request.object_id] = request.object_content
        self._missing.discard(request.object_id)
        if not self._missing:
            whole = inflate_object_from_contents(self._reply_id, self._came)
            assert isinstance(whole, Message)
            self.reply = whole
        return PushObjectResponse(stored=True)


def test_a_packet_goes_through_flowers_objects_and_back_unchanged():
    request = wire.Packet(header='{"é": 1}', array=bytes(range(256)) * 500)
    reply = wire.Packet(header="reply", array=b"\x00\xff")
    fleet, stop, seen = Fleet(request), threading.Event(), []

    def answer(packet: wire.Packet) -> wire.Packet:
        seen.append(packet)
        return reply

    link = node._Link(fleet, Node(node_id=5))
    serving = threading.Thread(
        target=node._serve_link, args=(link, node._Hand(), answer, stop), daemon=True
    )
    serving.start()
    wait_for(lambda: fleet.reply is not None or not serving.is_alive(), "the reply has come")
    stop.set()
    serving.join()
    assert seen == [request]
    assert fleet.received == [fleet._message.metadata.message_id]
    content = fleet.reply.content
    assert isinstance(content, RecordDict)
    assert server_app.from_record(content) == reply
    assert (node.RECORD, "train") == (server_app.RECORD, server_app.MESSAGE_TYPE)


@pytest.mark.parametrize("objects", [0, 1])
def test_an_answer_that_was_sent_in_part_goes_on_as_the_same_one(objects):
    """SuperLink takes one answer to a message; what is missing of it must still come."""
    fleet, stop, hand = Fleet(wire.Packet(header="?")), threading.Event(), node._Hand()
    fleet.breaks_after = objects
    link, reply = node._Link(fleet, Node(node_id=5)), wire.Packet(header="!", array=b"1")
    answered = []

    def answer(packet: wire.Packet) -> wire.Packet:
        answered.append(packet)
        return reply

    with pytest.raises(httpx.ReadError):
        node._serve_link(link, hand, answer, stop)
    serving = threading.Thread(
        target=node._serve_link, args=(link, hand, answer, stop), daemon=True
    )
    serving.start()
    wait_for(lambda: hand.message is None or not serving.is_alive(), "it is sent")
    stop.set()
    serving.join()
    assert (len(answered), len(fleet.answers)) == (1, 1)
    assert fleet.reply is not None, "the answer never came whole"
    content = fleet.reply.content
    assert isinstance(content, RecordDict)
    assert server_app.from_record(content) == reply


def test_a_message_that_is_not_ours_becomes_an_empty_packet():
    fleet = Fleet(wire.Packet(header="x"))
    other = Message(RecordDict(), 5, "train")
    other.metadata.__dict__["_message_id"] = other.object_id
    fleet._objects = {name: o.deflate() for name, o in get_all_nested_objects(other).items()}
    link = node._Link(fleet, Node(node_id=5))
    assert node._pull(link, other, get_object_tree(other)) == wire.Packet(header="")


def test_a_lost_connection_is_dialled_again_until_told_to_stop(monkeypatch, caplog):
    stop, dialled = threading.Event(), []
    request = httpx.Request("POST", "https://localhost/")
    outcomes = [
        httpx.ConnectError("connection refused"),
        httpx.HTTPStatusError("", request=request, response=httpx.Response(403, text="no")),
        httpx.HTTPStatusError("", request=request, response=httpx.Response(503, text="no")),
        ObjectPullError("id", "gone"),
    ]

    def refuse(_coordinator, *, anew):
        dialled.append(1)
        if len(dialled) == len(outcomes):
            stop.set()
        raise outcomes[len(dialled) - 1]

    monkeypatch.setattr(node, "_connect", refuse)
    monkeypatch.setattr(node, "_RETRY_SECONDS", (0.0, 0.0))
    key = certificates.new_key()
    there = node.Coordinator("localhost:1", b"", (key, key.public_key()), 1)
    with caplog.at_level("WARNING"):
        node.serve(lambda: there, lambda packet: packet, stop)
    assert len(dialled) == 4
    for sentence in ("connection refused", "was it revoked?", "is starting", "gone"):
        assert sentence in caplog.text


HANDED = SimpleNamespace(messages_list=[object()], message_object_trees=[object()])
NOTHING = SimpleNamespace(messages_list=[])


def _links(monkeypatch, pulls):
    """Connections whose `PullMessages` give `pulls`, one after the other; how each was dialled."""
    dialled = []

    @contextmanager
    def connect(_coordinator, *, anew):
        dialled.append(anew)
        client = SimpleNamespace(PullMessages=lambda _: pulls.pop(0)())
        yield node._Link(client, node.Node(node_id=1))

    monkeypatch.setattr(node, "_connect", connect)
    monkeypatch.setattr(node, "_RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(node, "message_from_proto", lambda message: message)
    return dialled


def _raising(error):
    def fail(*_):
        raise error

    return fail


def _serve(stop, answer):
    key = certificates.new_key()
    there = node.Coordinator("localhost:1", b"", (key, key.public_key()), 1)
    node.serve(lambda: there, answer, stop)


def test_a_node_that_only_lost_its_connection_stays_the_same_one(monkeypatch):
    """For a coordinator, another one would have lost what it was asked."""
    stop = threading.Event()
    pulls = [_raising(httpx.ReadError("lost")), lambda: stop.set() or NOTHING]
    dialled = _links(monkeypatch, pulls)
    _serve(stop, lambda packet: packet)
    assert dialled == [True, False]


def test_a_node_is_connected_again_only_when_the_coordinator_has_answered(monkeypatch):
    stop, beats, told = threading.Event(), [], []

    class Client:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def DeactivateNode(self, _):
            pass

        ActivateNode = DeactivateNode

        def SendNodeHeartbeat(self, _):
            beats.append(1)
            raise httpx.ConnectTimeout("timed out")

        def PullMessages(self, _):
            raise httpx.ReadTimeout("timed out")

    class Noting(node.Watcher):
        def connected(self):
            told.append("connected")

        def lost(self):
            told.append("lost")
            if len(told) == 4:
                stop.set()

    monkeypatch.setattr(node.FleetHttpClient, "from_server_address", lambda *_, **__: Client())
    monkeypatch.setattr(node, "_RETRY_SECONDS", (0.0, 0.0))
    key = certificates.new_key()
    there = node.Coordinator("localhost:1", b"", (key, key.public_key()), 1)
    node.serve(lambda: there, lambda packet: packet, stop, Noting())
    assert told == ["connected", "lost", "lost", "lost"]
    assert len(beats) >= 2


def test_a_node_whose_keys_were_changed_dials_with_the_new_ones_as_another(monkeypatch):
    """What it has in hand was asked of the old one: nobody waits for it any more."""
    stop, asked = threading.Event(), []
    pulls = [lambda: HANDED, lambda: stop.set() or NOTHING]
    dialled = _links(monkeypatch, pulls)
    monkeypatch.setattr(node, "_pull", _raising(httpx.ReadError("shut out")))
    key = certificates.new_key()

    def coordinator():
        asked.append(1)
        return node.Coordinator("localhost:1", b"", (key, key.public_key()), len(asked))

    node.serve(coordinator, lambda packet: packet, stop)
    assert (dialled, pulls) == ([True, True], [])


@pytest.mark.parametrize("step", ["_pull", "_push"])
def test_what_was_in_hand_when_the_connection_was_lost_is_answered_on_the_next(
    monkeypatch, step
):
    stop, pushed, answered = threading.Event(), [], []
    lost = [httpx.ReadError("lost"), httpx.ReadError("lost again")]
    dialled = _links(monkeypatch, [lambda: HANDED, lambda: stop.set() or NOTHING])

    def fails_twice(name, works):
        def call(*arguments):
            if name == step and lost:
                raise lost.pop(0)
            return works(*arguments)

        monkeypatch.setattr(node, name, call)

    fails_twice("_pull", lambda *_: wire.Packet(header="asked"))
    fails_twice("_push", lambda _link, reply: pushed.append(reply))
    monkeypatch.setattr(node, "_reply", lambda packet, _request: packet)
    reply = wire.Packet(header="answered")
    _serve(stop, lambda packet: answered.append(packet) or reply)
    assert dialled == [True, False, False]
    assert (len(answered), pushed) == (1, [reply])


def test_a_request_stays_unanswered_if_the_site_is_stopped_while_a_person_is_asked(monkeypatch):
    stop, pushed = threading.Event(), []
    dialled = _links(monkeypatch, [lambda: HANDED])
    monkeypatch.setattr(node, "_pull", lambda *_: wire.Packet(header="asked"))
    monkeypatch.setattr(node, "_push", lambda _link, reply: pushed.append(reply))

    def stopping(_):
        stop.set()
        raise StoppingError

    _serve(stop, stopping)
    assert (dialled, pushed) == ([True], [])


@pytest.mark.parametrize(
    "refusal",
    [
        ObjectPullError("id", "gone"),
        httpx.HTTPStatusError(
            "",
            request=httpx.Request("POST", "https://localhost/"),
            response=httpx.Response(409),
        ),
    ],
)
def test_an_answer_that_is_not_wanted_any_more_is_put_away(monkeypatch, caplog, refusal):
    stop = threading.Event()
    dialled = _links(monkeypatch, [lambda: HANDED, lambda: stop.set() or NOTHING])
    monkeypatch.setattr(node, "_pull", lambda *_: wire.Packet(header="asked"))
    monkeypatch.setattr(node, "_reply", lambda packet, _request: packet)
    monkeypatch.setattr(node, "_push", _raising(refusal))
    with caplog.at_level("WARNING"):
        _serve(stop, lambda packet: packet)
    assert dialled == [True]
    assert "not wanted any more" in caplog.text
