"""Two federations on hosts of their own, over a network that is slow, lossy and breaks.

Each packet takes 30 ms and one in a hundred is lost. A partition lasts FEDPACT_TEST_PARTITION
seconds: 35 unless told otherwise, in which every call that was under way is given up. What
happened when it lasted 180 is in docs/benchmarks.md. SuperLink takes a site for offline after
a minute, so that only a longer one shows how a run goes on without it.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedpact.client.agreements import Agreements
from fedpact.client.home import ClientHome
from fedpact.client.ledger import Reservation
from fedpact.common import accounting
from fedpact.common import study as studies
from support.federation import COORDINATOR, Daemon, Federation, federation
from support.network import Host, Network, missing, network
from support.processes import wait_for
from support.tiny_bert import TinyBert, write_data

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(missing()), reason=missing())]

PARTITION = float(os.environ.get("FEDPACT_TEST_PARTITION", "35"))
# After which SuperLink has taken a site for offline, whenever it was heard last.
OFFLINE = 75.0
STEPS = 60  # so many that every round can be hit in the middle
DELTA = 1e-5
QUORUM = {"North": 1, "South": 2}
SITES = {"North": ("Hospital", "Drug Maker"), "South": ("Clinic", "Agency")}
BACK = 300.0


@dataclass(frozen=True)
class Town:
    """A federation, where each of it is, and its study."""

    fed: Federation
    hosts: dict[str, Host]
    study: Path

    def training(self, site: str, run: str) -> Reservation | None:
        """What a site has reserved and not settled: the round it is in the middle of."""
        found = [r for r in self.fed.reservations(site) if r.run == run]
        return next((r for r in found if r.settled_at is None), None)

    def states(self, run: str, number: int) -> dict[str, str]:
        """What became of each site in a round; the run must still be under way."""
        view = self.fed.view(run)
        assert view.is_under_way, view.message
        found = next((r for r in view.rounds if r.number == number), None)
        return {name: a.state for name, a in found.answers.items()} if found else {}

    def rounds(self, run: str) -> int:
        view = self.fed.view(run)
        assert view.is_under_way, view.message
        return len(view.rounds)


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network(6, delay_seconds=0.03, loss=0.01) as made:
        yield made


@pytest.fixture(scope="module")
def towns(net: Network, tiny: TinyBert, tmp_path_factory) -> Iterator[dict[str, Town]]:
    folder, hosts = tmp_path_factory.mktemp("network"), iter(net.hosts)
    with ExitStack() as stack:
        made = {}
        for town, names in SITES.items():
            here = {who: next(hosts) for who in (COORDINATOR, *names)}
            data = {n: write_data(folder / f"{n}.csv", seed=i) for i, n in enumerate(names)}
            fed = stack.enter_context(federation(folder / town, data, here))
            study = tiny.write_study(
                folder / f"{town}.toml",
                study={"name": town},
                training={"rounds": 200, "local_steps": STEPS},
                federation={"quorum": QUORUM[town], "deadline_seconds": 300.0 + PARTITION},
                institutions=[
                    {"name": name, "sector": sector, "records": 120}
                    for name, sector in zip(names, ("academia", "industry"), strict=True)
                ],
            )
            made[town] = Town(fed, here, study)
        for town, up in made.items():
            wait_for(lambda up=up, t=town: up.fed.online() == set(SITES[t]), town, within=180)
        yield made


@dataclass(frozen=True)
class Cut:
    """Who is cut off from a town while one of its sites trains for a run."""

    town: Town
    run: str
    site: str
    who: str


def cut_off(net: Network, *cuts: Cut) -> list[Reservation]:
    """Cut hosts off when a site of each town is in the middle of a round; which it is."""
    for cut in cuts:
        wait_for(lambda c=cut: c.town.rounds(c.run) >= 2, "the second round", within=180)
    found: list[Reservation] = []

    def all_train() -> bool:
        found[:] = filter(None, (cut.town.training(cut.site, cut.run) for cut in cuts))
        return len(found) == len(cuts)

    wait_for(all_train, "all of them train", within=180)
    net.cut_off(*(cut.town.hosts[cut.who] for cut in cuts))
    return found


def spent_once(town: Town, run: str) -> None:
    """Each site has reserved each round of a run at most once, and spent just that."""
    view = town.fed.view(run)
    for name in town.fed.sites:
        found = [r for r in town.fed.reservations(name) if r.run == run]
        numbers = [r.round for r in found]
        assert numbers == sorted(set(numbers))
        answers = {r.number: r.answers[name] for r in view.rounds if name in r.answers}
        updated = [n for n, answer in answers.items() if answer.state == "updated"]
        assert set(updated) <= set(numbers) <= answers.keys()
        for reservation in found:
            assert (reservation.settled_steps, reservation.counted_steps) == (STEPS, STEPS)
        spent = town.fed.spent(name, run, DELTA)
        assert spent == accounting.epsilon([r.mechanism for r in found], DELTA)
        # An update that was not let go, as after a withdrawal, is paid for and not told.
        told = [r.mechanism for r in found if r.round <= updated[-1]]
        assert accounting.epsilon(told, DELTA) == answers[updated[-1]].epsilon


def test_studies_go_on_when_the_network_does_and_nothing_is_spent_twice(net, towns):
    north, south = towns["North"], towns["South"]
    run = {name: town.fed.start_run(town.study) for name, town in towns.items()}
    in_north, in_south = cut_off(
        net,
        Cut(north, run["North"], "Hospital", "Hospital"),
        Cut(south, run["South"], "Clinic", COORDINATOR),
    )
    healed = time.monotonic() + PARTITION
    if PARTITION > OFFLINE:
        more = in_north.round + 2
        wait_for(lambda: north.rounds(run["North"]) >= more, "North goes on", within=PARTITION)
        assert north.states(run["North"], in_north.round)["Hospital"] == "lost"
    wait_for(lambda: time.monotonic() > healed, "the partition", within=PARTITION + 1)
    assert south.rounds(run["South"]) == in_south.round
    net.heal()

    def takes_part(town: Town, run: str, site: str, after: int) -> bool:
        numbers = range(after + 1, town.rounds(run) + 1)
        return any(town.states(run, n).get(site) == "updated" for n in numbers)

    for town, of, site, cut_in in (
        (north, run["North"], "Hospital", in_north.round),
        (south, run["South"], "Clinic", in_south.round),
        (south, run["South"], "Agency", in_south.round),
    ):
        wait_for(
            lambda t=town, r=of, s=site, n=cut_in: takes_part(t, r, s, n),
            f"{site} takes part again",
            within=BACK,
        )
    # Nobody gave up the round that South was in: both answered it when they could.
    both = dict.fromkeys(SITES["South"], "updated")
    assert south.states(run["South"], in_south.round) == both

    for name, town in towns.items():
        for site in town.fed.sites:
            assert town.fed.daemons[site].process.poll() is None
            status = json.loads(town.fed.at(site, "client", "status", "--format", "json"))
            assert status["up"]
            assert status["connected_since"]
            assert status["run"] == run[name]
        town.fed.at(COORDINATOR, "run", "stop", run[name])
        result = town.fed.result(run[name])
        assert (result["status"], result["message"]) == ("stopped", "")
        spent_once(town, run[name])


def test_a_withdrawal_in_a_partition_holds_at_once_and_is_told_when_it_is_over(
    net, towns, tmp_path
):
    north = towns["North"]
    digest = studies.load(north.study).digest
    run = north.fed.start_run(north.study)
    (in_hand,) = cut_off(net, Cut(north, run, "Hospital", "Hospital"))
    home = north.fed.sites["Hospital"]
    words = ("client", "withdraw", digest[:12], "--why", "Enough.", "--home", str(home.folder))
    through = north.hosts["Hospital"].through
    withdrawing = Daemon(words, tmp_path / "withdraw.log", {}, through)
    wait_for(lambda: decided(home, digest) == "withdraw", "it is written down", within=60)
    assert withdrawing.process.poll() is None, "it was told before it was written down"
    assert withdrawing.process.wait(120) == 0
    assert "is sent as soon as" in withdrawing.said
    assert north.fed.standing(digest)["state"] == "active"
    net.heal()
    result = north.fed.result(run)
    assert result["status"] == "stopped"
    assert "Hospital withdrew (Enough.)" in result["message"]
    assert north.fed.standing(digest)["state"] == "withdrawn"
    found = [r.round for r in north.fed.reservations("Hospital") if r.run == run]
    assert max(found) == in_hand.round
    spent_once(north, run)


def decided(home: ClientHome, digest: str) -> str:
    """An institution's own newest decision on a study, as its database has it."""
    engine = home.open_database()
    try:
        own = Agreements(engine).find(digest).own
    finally:
        engine.dispose()
    return own.kind if own else ""
