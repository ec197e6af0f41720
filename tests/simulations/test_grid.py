"""Flower's grid in one process: the round loop sees of it what it sees of SuperLink."""

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedpact.common import wire
from fedpact.server.app import GridExchange, from_record, to_record
from fedpact.simulations.grid import InProcessGrid


def echo(name: str):
    def answer(packet: wire.Packet) -> wire.Packet:
        return wire.Packet(header=f"{name}: {packet.header}", array=packet.array[::-1])

    return answer


def question(node: int, header: str = "?") -> Message:
    return Message(to_record(wire.Packet(header=header, array=b"\x00ab")), node, "train")


@pytest.fixture
def grid() -> InProcessGrid:
    return InProcessGrid({7: echo("seven"), 8: echo("eight")})


def test_it_is_a_grid_of_flowers(grid):
    assert isinstance(grid, Grid)
    assert set(grid.get_node_ids()) == {7, 8} == {node.node_id for node in grid.get_nodes()}


def test_each_message_is_answered_by_the_node_it_names(grid):
    replies = list(grid.send_and_receive([question(8, "a"), question(7, "b")]))
    packets = {r.metadata.src_node_id: from_record(r.content) for r in replies}
    assert packets == {
        8: wire.Packet(header="eight: a", array=b"ba\x00"),
        7: wire.Packet(header="seven: b", array=b"ba\x00"),
    }


def test_replies_come_one_by_one_and_say_what_they_answer(grid):
    sent = list(grid.push_messages([question(7), question(8)]))
    assert len(set(sent)) == 2
    came = []
    while replies := list(grid.pull_messages(sent)):
        (reply,) = replies
        came.append(reply.metadata.reply_to_message_id)
    assert came == sent
    assert list(grid.pull_messages(sent)) == []


def test_a_site_works_only_when_its_reply_is_pulled():
    calls = []

    def answer(packet: wire.Packet) -> wire.Packet:
        calls.append(packet)
        return packet

    grid = InProcessGrid({1: answer})
    sent = list(grid.push_messages([question(1)]))
    assert calls == []
    list(grid.pull_messages(sent))
    assert len(calls) == 1


def test_messages_that_nobody_waits_for_any_more_are_not_answered():
    calls = []

    def answer(packet: wire.Packet) -> wire.Packet:
        calls.append(packet.header)
        return packet

    grid = InProcessGrid({1: answer})
    list(grid.push_messages([question(1, "old")]))
    sent = list(grid.push_messages([question(1, "new")]))
    (reply,) = grid.pull_messages(sent)
    assert from_record(reply.content).header == "new"
    assert calls == ["new"]


def test_a_run_that_was_not_set_is_said(grid):
    with pytest.raises(RuntimeError, match="no run"):
        _ = grid.run


# The exchange over it


@pytest.fixture
def exchange(grid) -> GridExchange:
    return GridExchange(grid, {"A": 7, "B": 8, "Elsewhere": 9})


def test_institutions_are_present_whose_node_is(exchange):
    assert set(exchange.present()) == {"A", "B"}


def test_packets_go_to_the_institution_they_are_for(exchange):
    exchange.ask({"A": wire.Packet(header="for A"), "B": wire.Packet(header="for B")})
    replies = {}
    while came := exchange.replies():
        replies |= came
    assert {name: packet.header for name, packet in replies.items()} == {
        "A": "seven: for A",
        "B": "eight: for B",
    }


def test_replies_to_an_earlier_question_are_not_taken_for_this_ones(exchange):
    exchange.ask({"A": wire.Packet(header="first")})
    exchange.ask({"B": wire.Packet(header="second")})
    assert {n: p.header for n, p in exchange.replies().items()} == {"B": "eight: second"}
    assert exchange.replies() == {}


def test_asked_again_one_site_answers_once_and_the_others_are_still_waited_for(exchange):
    exchange.ask({"A": wire.Packet(header="first"), "B": wire.Packet(header="first")})
    exchange.ask_again({"B": wire.Packet(header="again")})
    came = []
    while replies := exchange.replies():
        came += [packet.header for packet in replies.values()]
    assert came == ["seven: first", "eight: again"]


def test_what_flower_brings_without_content_is_an_empty_packet(exchange):
    assert from_record(RecordDict()) == wire.Packet(header="")


def test_a_site_for_which_superlink_answers_is_lost_at_once(exchange, grid):
    exchange.ask({"A": wire.Packet(header="?"), "B": wire.Packet(header="?")})
    pull = grid.pull_messages

    def failing(ids):
        return [
            _error_for(message) if message.metadata.src_node_id == 7 else message
            for message in pull(ids)
        ]

    grid.pull_messages = failing
    assert exchange.replies() == {}
    exchange._next_check = float("inf")
    assert exchange.lost({"A", "B"}) == {"A"}
    assert exchange.replies().keys() == {"B"}
    exchange.ask({"A": wire.Packet(header="?")})
    exchange._next_check = float("inf")
    assert exchange.lost({"A"}) == set()


def _error_for(reply: Message) -> Message:
    """What SuperLink says for a node that is away, to the same question."""
    error = Message(Error(code=3, reason="Node Unavailable"), reply_to=reply)
    error.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    return error


class Fading(InProcessGrid):
    """A grid whose nodes can go away and be started again."""

    def __init__(self) -> None:
        super().__init__({7: echo("seven"), 8: echo("eight")})
        self.activated = {7: "monday", 8: "monday"}

    def get_nodes(self):
        nodes = [n for n in super().get_nodes() if n.node_id in self.activated]
        for node in nodes:
            node.last_activated_at = self.activated[node.node_id]
        return nodes


def test_sites_that_went_away_or_were_started_again_are_lost():
    grid = Fading()
    exchange = GridExchange(grid, {"A": 7, "B": 8})
    packets = dict.fromkeys(("A", "B"), wire.Packet(header="?"))
    exchange.ask(packets)
    assert exchange.lost({"A", "B"}) == set()
    del grid.activated[7]
    grid.activated[8] = "tuesday"
    exchange._next_check = 0.0
    assert exchange.lost({"A", "B"}) == {"A", "B"}
    exchange._next_check = 0.0
    assert exchange.lost({"B"}) == {"B"}
    # Asked anew, or again, whoever is there is not lost for what happened before.
    exchange.ask_again({"B": wire.Packet(header="?")})
    exchange._next_check = 0.0
    assert exchange.lost({"A", "B"}) == {"A"}
    exchange.ask({"B": wire.Packet(header="?")})
    exchange._next_check = 0.0
    assert exchange.lost({"B"}) == set()
