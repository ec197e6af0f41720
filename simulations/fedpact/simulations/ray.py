"""The same run on Flower's Ray backend: sites in many processes, or on many machines.

Flower does not tell a ServerApp which simulated node is which partition, so the run begins
by asking each node. Neither Flower nor Ray reports home unless the environment says so.
"""

import os
import time
from functools import partial
from pathlib import Path
from typing import ClassVar

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from sqlalchemy import Engine

from fedpact.client.site import Site
from fedpact.client.workbench import Workbench
from fedpact.common.wire import RECORD
from fedpact.server.app import GridExchange, from_record, to_record
from fedpact.server.conduct import conduct
from fedpact.server.round_needs import Terms
from fedpact.simulations.federation import Federation, seeded_workbench

_PARTITION = "partition-id"
_REST_SECONDS = 0.1


def conduct_on_ray(
    engine: Engine, run: str, federation: Federation, artifacts: Path, seed: int
) -> None:
    """Conduct a run on Ray; returns when it has ended.

    Raises:
        FedpactError: why it failed.
    """
    from flwr.simulation import run_simulation

    _keep_quiet()
    server_app = ServerApp()
    failures: list[Exception] = []

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        try:
            nodes = _discover(grid, federation)
            terms = partial(Terms.all_of, federation.study)
            conduct(engine, run, GridExchange(grid, nodes), artifacts, terms)
        except Exception as error:
            failures.append(error)
            raise

    run_simulation(
        server_app,
        _client_app(federation, seed),
        num_supernodes=len(federation.shards),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    if failures:
        raise failures[0]


def _client_app(federation: Federation, seed: int) -> ClientApp:
    app = ClientApp()
    digest = federation.study.digest

    @app.query()
    def which(message: Message, context: Context) -> Message:
        index = int(context.node_config[_PARTITION])
        return Message(
            RecordDict({RECORD: ConfigRecord({_PARTITION: index})}), reply_to=message
        )

    @app.train()
    def train(message: Message, context: Context) -> Message:
        index = int(context.node_config[_PARTITION])
        site = _resident(digest, index, seed, federation)
        return Message(to_record(site.answer(from_record(message.content))), reply_to=message)

    return app


class _Residents:
    """What a Ray actor keeps between messages: one model, and the sites it has served."""

    workbench: ClassVar[Workbench | None] = None
    sites: ClassVar[dict[tuple[str, int], Site]] = {}


def _resident(digest: str, index: int, seed: int, federation: Federation) -> Site:
    if _Residents.workbench is None:
        _Residents.workbench = seeded_workbench(seed + index)
    if (digest, index) not in _Residents.sites:
        _Residents.sites[digest, index] = federation.site(index, _Residents.workbench)
    return _Residents.sites[digest, index]


def _keep_quiet() -> None:
    """Have nothing reported to Flower's or Ray's makers (Flower has read its setting already)."""
    from flwr.supercore import telemetry

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    telemetry.FLWR_TELEMETRY_ENABLED = os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")


def _discover(grid: Grid, federation: Federation) -> dict[str, int]:
    """Which node is which site; Flower starts us before all of its nodes are there."""
    while len(nodes := list(grid.get_node_ids())) < len(federation.shards):
        time.sleep(_REST_SECONDS)
    questions = [Message(RecordDict(), node, "query") for node in nodes]
    found = {}
    for reply in grid.send_and_receive(questions):
        index = reply.content.config_records[RECORD][_PARTITION]
        found[federation.shards[int(str(index))].name] = reply.metadata.src_node_id
    return found
