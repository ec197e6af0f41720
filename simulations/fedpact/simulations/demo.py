"""`fedpact demo`: a whole federation on this machine, for real.

One coordinator and three institutions, each a process of its own with its own folder, data
and database; SuperLink behind the gateway, TLS and node authentication on. The processes
are those that `fedpact server up` and `fedpact client up` start anywhere.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import tomli_w
import typer
from rich.console import Console

from fedpact.client import policy
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.join import join
from fedpact.client.summary import objection
from fedpact.common import study as studies
from fedpact.common import tabular
from fedpact.common.base_models import file_digest
from fedpact.common.certificates import fingerprint, load_certificate
from fedpact.common.errors import AddressError, DataError, PolicyError, RunError, UsageError
from fedpact.common.private_files import write_private
from fedpact.common.study_parties import Sector
from fedpact.server import home as homes
from fedpact.server import institutions, runs
from fedpact.server.home import ServerHome
from fedpact.server.results import RunResult, overview
from fedpact.server.starting import start_run
from fedpact.server.superlink import free_ports
from fedpact.server.tables import transaction
from fedpact.server.watch import watch
from fedpact.simulations.reports import VOICES, write_demo_data

_MARK = ".fedpact-demo"
_STOP_SECONDS = 15.0
_TERMINATED = 128 + signal.SIGTERM
_START_SECONDS = 120.0
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_TEST_SET = "public_test"
_BY_ITSELF = """
# In the demo nobody sits at the institutions.
approval = "automatic"
"""
_CHILD = (
    "from fedpact.server.superlink import end_with_parent; end_with_parent(); "
    "from fedpact.simulations.cli import main; main()"
)


@dataclass(frozen=True)
class Demo:
    """What `fedpact demo` was asked."""

    folder: Path
    rounds: int | None = None
    records: int | None = None
    data: Path | None = None


@dataclass(frozen=True)
class Member:
    """An institution of the demo and its data file."""

    name: str
    sector: Sector
    data: Path


def run_demo(asked: Demo, *, as_json: bool) -> None:
    """Run the demo, show it while it goes on, print its result.

    Raises:
        FedpactError: why it could not run to its end.
    """
    console = Console(stderr=True)
    folder = _fresh_folder(asked.folder)
    members, test_set = _members(asked, folder)
    study_file = _write_study(folder, members, test_set, asked.rounds)
    console.print(f"Everything is in [bold]{folder}[/]; Ctrl-C ends it all.", highlight=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    with ExitStack() as running:
        # Called last: Ctrl-C means something again once every process has been stopped.
        running.callback(signal.signal, signal.SIGINT, signal.default_int_handler)
        view = _run(folder, members, study_file, console, running)
        with console.status("Stopping every process"):
            running.close()
    if as_json:
        typer.echo(RunResult.of(view).model_dump_json(indent=2))
    else:
        Console().print(overview(view))
    if view.status != "completed":
        raise RunError(f"The run ended as {view.status}: {view.message}")


def _run(
    folder: Path,
    members: list[Member],
    study_file: Path,
    console: Console,
    running: ExitStack,
) -> runs.RunView:
    port, service_port = free_ports(2)
    server = homes.init(folder / "coordinator", "localhost", port, service_port)
    threads = max(1, (os.cpu_count() or 1) // len(members))
    with console.status("Starting the coordinator"):
        process = running.enter_context(
            _process(["server", "up", "--home", str(server.folder)], server.log, threads)
        )
        _wait_until_up(server, process)
    for member in members:
        home = ClientHome(folder / "sites" / member.data.name.split(".")[0])
        with console.status(f"{member.name} joins"):
            _join(server, member, home)
            running.enter_context(
                _process(["client", "up", "--home", str(home.folder)], home.folder, threads)
            )
        _require_consent(home, member, study_file)
    with console.status("The institutions read the study and sign it"):
        run = start_run(server.folder, study_file, waiting=lambda _: None)
    return watch(server, server.open_database(), run, console)


def _join(server: ServerHome, member: Member, home: ClientHome) -> None:
    """What the coordinator and the institution type, in its order."""
    engine = server.open_database()
    with transaction(engine) as session:
        token = institutions.invite(
            session,
            member.name,
            member.sector,
            address=server.settings().address,
            service=server.settings().service_address,
            fingerprint=fingerprint(load_certificate(server.ca)),
            valid_for=timedelta(hours=1),
        )
    engine.dispose()
    join(token, home)
    write_private(home.policy, (policy.template() + _BY_ITSELF).encode())
    Datasets(home.open_database()).add("reports", member.data)


def _members(asked: Demo, folder: Path) -> tuple[list[Member], Path | None]:
    """The institutions with their files, and the public test set if there is one.

    Raises:
        DataError: the folder that was named does not hold one file per institution.
    """
    if asked.data is None:
        made = write_demo_data(folder / "data", records=asked.records)
        members = [Member(v.institution, Sector(v.sector), made.sites[v.key]) for v in VOICES]
        return members, made.public_test
    files = [
        path
        for path in sorted(asked.data.expanduser().glob("*"))
        if path.name.lower().endswith(tabular.SUFFIXES)
    ]
    test_sets = [path for path in files if path.name.startswith(_TEST_SET)]
    own = [path for path in files if path not in test_sets]
    if len(own) != len(VOICES):
        raise DataError(
            f"{asked.data} holds {len(own)} data files, the demo has {len(VOICES)} institutions.",
            advice=f"Give one .csv, .jsonl or .parquet each, and {_TEST_SET}.csv if you have one.",
        )
    members = [
        Member(voice.institution, Sector(voice.sector), path)
        for voice, path in zip(VOICES, own, strict=True)
    ]
    return members, test_sets[0] if test_sets else None


def _write_study(
    folder: Path, members: list[Member], test_set: Path | None, rounds: int | None
) -> Path:
    """Write the demo's study: sizes as the institutions declare them."""
    tables = {member.name: tabular.read(member.data) for member in members}
    labels = sorted({str(x) for t in tables.values() for x in t.columns.get("label", [])})
    if len(labels) < 2:  # noqa: PLR2004 - a classifier needs two
        raise DataError("The data has fewer than two labels in its column 'label'.")
    smallest = min(table.records for table in tables.values())
    evaluation = {}
    if test_set is not None:
        copy = folder / test_set.name
        shutil.copyfile(test_set, copy)
        evaluation = {"data": copy.name, "sha256": file_digest(copy)}
    document = {
        "study": {
            "name": "adverse-events",
            "purpose": "Find the reports of adverse drug reactions that are serious.",
        },
        "task": {"name": "text-classification", "labels": labels},
        "model": {
            "base": "sentence-transformers/all-MiniLM-L6-v2",
            "sha256": _MINILM_SHA256,
        },
        "adapter": {"r": 4, "lora_alpha": 4, "layers_to_transform": [3, 4, 5]},
        "training": {
            "rounds": rounds or 20,
            "local_steps": 1,
            "batch_size": max(16, 3 * smallest // 10),
            "optimizer": "sgd",
            "learning_rate": 1.0,
            "max_length": 64,
        },
        "privacy": {"target_epsilon": 8.0, "target_delta": 1e-5, "max_grad_norm": 1.0},
        "aggregation": {
            "method": "ffa-lora",
            "server_optimizer": "adam",
            "server_learning_rate": 0.1,
        },
        "federation": {"quorum": 2, "deadline_seconds": 600.0},
        "evaluation": evaluation,
        "institutions": [
            {"name": m.name, "sector": m.sector.value, "records": tables[m.name].records}
            for m in members
        ],
    }
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(document), encoding="utf-8")
    return path


def _fresh_folder(folder: Path) -> Path:
    """An empty folder; only one that an earlier demo made is emptied.

    Raises:
        UsageError: the folder holds something else.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).exists():
            raise UsageError(
                f"{folder} is not an earlier demo's and not empty.",
                advice="Name another --folder.",
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()
    return folder


@contextmanager
def _process(
    arguments: list[str], folder: Path, threads: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `fedpact …` in the background; at the end SIGTERM, and SIGKILL if that is ignored.

    A process of many threads on a core that others want too is many times slower than one
    of a single thread, so cores are shared out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{arguments[0]}.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                "OMP_WAIT_POLICY": "PASSIVE",
                "HF_HUB_OFFLINE": "1",
            },
            start_new_session=True,  # Ctrl-C comes here first; we end them in order
        )
    try:
        yield process
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not orphan it
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _require_consent(home: ClientHome, member: Member, study_file: Path) -> None:
    """Nobody sits at the institutions: what their rules do not allow would wait for ever.

    Raises:
        PolicyError: a member's rules do not allow the study.
    """
    if why := objection(home, studies.load(study_file), member.name):
        raise PolicyError(f"{member.name} does not sign the study: {why}")


def _wait_until_up(server: ServerHome, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while server.serving() is None:
        if process.poll() is not None or time.monotonic() > deadline:
            log = (server.log / "server.log").read_text(encoding="utf-8", errors="replace")
            last = (log.strip().splitlines() or ["it said nothing"])[-1]
            raise AddressError(f"The coordinator did not start: {last}")
        time.sleep(0.1)
