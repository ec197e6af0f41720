"""Flower's grid in one process: a message is answered by the site it names, here and now.

Replies are made when they are pulled, one a pull, so that the round loop sees them come one
by one and keeps none of them, as it does from SuperLink.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedpact.common import wire
from fedpact.server.app import from_record, to_record

_COORDINATOR = 1
Answer = Callable[[wire.Packet], wire.Packet]


class InProcessGrid(Grid):
    """A grid whose nodes are functions.

    Args:
        answers: node id to what answers for it.
    """

    def __init__(self, answers: Mapping[int, Answer]) -> None:
        self._answers = dict(answers)
        self._waiting: deque[Message] = deque()
        self._number = itertools.count(1)
        self._run: Run | None = None
        # Flower reads who sends a message from here; SuperLink's processes set it themselves.
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = _COORDINATOR

    def set_run(self, run: Run) -> None:
        """Remember the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that was set.

        Raises:
            RuntimeError: none was.
        """
        if self._run is None:
            raise RuntimeError("no run was set")
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message, as Flower's grids do."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes' ids."""
        return list(self._answers)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The nodes: all of them, always."""
        return [NodeInfo(node_id=node) for node in self._answers]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; each gets an id."""
        ids = []
        for message in messages:
            ids.append(f"message-{next(self._number)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self._waiting.append(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answer the first of the messages that still waits."""
        wanted = set(message_ids)
        while self._waiting:
            message = self._waiting.popleft()
            if message.metadata.message_id in wanted:
                packet = self._answers[message.metadata.dst_node_id](
                    from_record(message.content)
                )
                return [Message(to_record(packet), reply_to=message)]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and answer them all; there is nothing to wait for."""
        del timeout
        pending = set(self.push_messages(messages))
        replies: list[Message] = []
        while came := list(self.pull_messages(pending)):
            replies.extend(came)
        return replies
