"""The ServerApp: Flower's grid on one side, our round loop on the other.

SuperLink starts it in a process of its own for each run. It pushes and pulls messages
itself: Flower's `send_and_receive` looks for replies every three seconds only.
"""

import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedpact.common import wire
from fedpact.common.wire import RECORD
from fedpact.server.fab import HOME_KEY, RUN_KEY

MESSAGE_TYPE = "train"
_POLL_SECONDS = 0.05
_UPLOAD_POLL_SECONDS = 0.02
_LOST_CHECK_SECONDS = 2.0


def to_record(packet: wire.Packet) -> RecordDict:
    """A packet as Flower carries it: one record, so that few objects travel."""
    return RecordDict({RECORD: ConfigRecord({**packet.fields()})})


def from_record(content: RecordDict) -> wire.Packet:
    """A packet as Flower brought it; what is not there is empty, and fails its checks."""
    return wire.Packet.of(content.config_records.get(RECORD, {}))


class GridExchange:
    """The `Exchange` of the round loop over a Flower grid.

    Args:
        grid: Flower's, or the simulation's.
        nodes: institution name to Flower node id.
    """

    def __init__(self, grid: Grid, nodes: Mapping[str, int]) -> None:
        self._grid = grid
        self._nodes = dict(nodes)
        self._names = {node: name for name, node in nodes.items()}
        self._waiting: dict[str, str] = {}
        self._activated: dict[str, str | None] = {}
        self._gone: set[str] = set()
        self._next_check = 0.0

    def present(self) -> AbstractSet[str]:
        """Names of the institutions whose node is online."""
        return self._online().keys()

    def ask(self, packets: Mapping[str, wire.Packet]) -> None:
        """Push one message to each institution; replies to earlier ones are forgotten."""
        self._waiting.clear()
        self._gone.clear()
        self.ask_again(packets)

    def ask_again(self, packets: Mapping[str, wire.Packet]) -> None:
        """Push one message more to each of some that were asked; the others are waited for."""
        names, online = list(packets), self._online()
        self._activated |= {name: online.get(name) for name in names}
        self._gone -= packets.keys()
        self._waiting = {m: n for m, n in self._waiting.items() if n not in packets}
        messages = [
            Message(to_record(packets[name]), self._nodes[name], MESSAGE_TYPE) for name in names
        ]
        sent = self._grid.push_messages(messages)
        self._waiting |= {m: n for m, n in zip(sent, names, strict=True) if m}

    def replies(self) -> Mapping[str, wire.Packet]:
        """Replies that have come; a short rest if there are none."""
        came = {}
        for message in self._grid.pull_messages(list(self._waiting)):
            name = self._waiting.pop(message.metadata.reply_to_message_id, None)
            if name is not None and message.has_content():
                came[name] = from_record(message.content)
            elif name is not None:
                self._gone.add(name)  # SuperLink answers for a node that cannot any more
        if not came:
            time.sleep(_POLL_SECONDS)
        return came

    def lost(self, pending: AbstractSet[str]) -> AbstractSet[str]:
        """Those whose node is offline, or was activated again since it was asked."""
        gone = self._gone & pending
        if time.monotonic() < self._next_check:
            return gone
        self._next_check = time.monotonic() + _LOST_CHECK_SECONDS
        now = self._online()
        return gone | {n for n in pending if now.get(n) != self._activated.get(n)}

    def _online(self) -> dict[str, str]:
        return {
            self._names[node.node_id]: node.last_activated_at
            for node in self._grid.get_nodes()
            if node.node_id in self._names
        }


def look_again_soon() -> None:
    """Have Flower's grid wait less for a reply that is still being uploaded.

    A reply can be seen before its last object is there. Flower then rests a whole second
    before it looks again, and we look so often that this is half of all replies. Its rests
    double from here on as they did, so that a slow upload is not asked for more often.
    A contract test holds what this takes from Flower.
    """
    from flwr.supercore.inflatable.inflatable_utils import pull_objects
    from flwr.superlink.grid import http_grid

    http_grid.pull_objects = partial(  # type: ignore[attr-defined]
        pull_objects, initial_backoff=_UPLOAD_POLL_SECONDS
    )


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Conduct the run that the coordinator wrote down."""
    from fedpact.common import logs
    from fedpact.server import institutions, pact, runs
    from fedpact.server.conduct import conduct
    from fedpact.server.home import ServerHome

    look_again_soon()
    home = ServerHome(Path(str(context.run_config[HOME_KEY])))
    run = str(context.run_config[RUN_KEY])
    # Flower swallows what a run prints.
    logs.configure(home.log / f"run-{run}.log")
    engine = home.open_database()
    study, _ = runs.study_of(engine, run)
    nodes = institutions.node_ids(engine, {i.name for i in study.institutions})
    terms = partial(pact.terms, engine, study.digest)
    conduct(engine, run, GridExchange(grid, nodes), home.artifacts, terms)
