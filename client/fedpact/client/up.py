"""The composition root of a site: `fedpact client up`.

Everything real is put together here; nowhere else is a part of a site chosen.
"""

import ctypes
import logging
import os
import signal
import sys
import threading

import numpy as np
import torch

from fedpact.client import policy
from fedpact.client.agreements import Agreements
from fedpact.client.correspondence import Desk
from fedpact.client.datasets import Dataset, Datasets, find_dataset
from fedpact.client.gate import Gate
from fedpact.client.home import ClientHome
from fedpact.client.join import load_site
from fedpact.client.ledger import Ledger
from fedpact.client.personal import RunFolder
from fedpact.client.record_cache import encode
from fedpact.client.site import Site
from fedpact.client.statement import statements
from fedpact.client.validation import Split, split
from fedpact.client.workbench import Workbench
from fedpact.common import logs, scrape, wire
from fedpact.common import model as models
from fedpact.common.errors import TrustError, UsageError
from fedpact.common.randomness import Randomness
from fedpact.common.study import Study

log = logging.getLogger(__name__)

INSECURE_SEED = "FEDPACT_INSECURE_SEED"
_GOODBYE_SECONDS = 5.0


def build_site(
    home: ClientHome,
    name: str,
    workbench: Workbench,
    stop: threading.Event | None = None,
) -> Site:
    """Put an institution's site together from its folder.

    Args:
        home: the site's folder.
        name: the institution, as studies name it.
        workbench: the resident model.
        stop: set, it ends the wait for a person's word.

    Raises:
        StorageError: the site's database cannot be opened.
    """
    engine = home.open_database()
    datasets = Datasets(engine)

    def records(study: Study, dataset: Dataset) -> Split:
        tokenizer = workbench.model(study).tokenizer
        return split(study, encode(home, dataset, study, tokenizer))

    return Site(
        name=name,
        dataset=lambda study: find_dataset(datasets, study),
        records=records,
        agreed=Agreements(engine).require,
        policy=lambda: policy.load(home.policy),
        ledger=Ledger(engine),
        gate=Gate(engine, home.outbox),
        runs=RunFolder(home.runs),
        workbench=workbench,
        pause=(stop or threading.Event()).wait,
    )


def insecure_randomness() -> Randomness | None:
    """What FEDPACT_INSECURE_SEED asks for, said aloud: the one way to a seed for a site.

    Returns:
        a generator with that seed; None without the variable.

    Raises:
        UsageError: it is not a number.
    """
    text = os.environ.get(INSECURE_SEED, "")
    if not text:
        return None
    if not text.isdecimal():
        raise UsageError(f"{INSECURE_SEED} is not a number.", advice="Leave it out.")
    log.warning(
        "INSECURE: %s is set. Sampling and noise come from a seed: whoever knows it can take the "
        "noise away, and no ε holds. For tests with invented records only.",
        INSECURE_SEED,
    )
    return np.random.default_rng(int(text))


def give_back_memory() -> None:
    """Return freed memory to the operating system, where the C library is glibc.

    Micro-batches of ever other shapes leave holes between what stays, and glibc gives back
    none but the last: a site would grow by half a gibibyte in a dozen rounds.
    """
    if sys.platform != "linux":
        return
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def take_share(rules: policy.Policy) -> None:
    """Keep training to the share of this machine that the policy gives it."""
    if rules.cpu_threads is not None:
        torch.set_num_threads(rules.cpu_threads)
    device = models.choose_device()
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(rules.gpu_memory_fraction, device)


def up(home: ClientHome, *, metrics_port: int | None = None) -> None:
    """Serve until told to stop, by SIGTERM or Ctrl-C.

    Args:
        home: the site's folder.
        metrics_port: where to serve metrics; None: nowhere.

    Raises:
        PolicyError: the policy file is not valid.
        TrustError: the site has not joined, or a key cannot be used.
        UsageError: another daemon serves from this folder, or FEDPACT_INSECURE_SEED is no number.
        AddressError: the metrics cannot be served.
        StorageError: the site's database or disk fails.
    """
    from fedpact.client import node
    from fedpact.client.daemon import Daemon, alone
    from fedpact.client.metrics import ClientMetrics, MeteredWorkbench

    joined = load_site(home)
    if joined.keys is None:
        raise TrustError(
            f"{joined.institution} takes part as {joined.role}, and runs no site.",
            advice="Only data holders do.",
        )
    take_share(policy.load(home.policy))
    last = joined

    def coordinator() -> node.Coordinator:
        """As the folder has it now: keys may have been changed while we serve."""
        nonlocal last
        try:
            last = load_site(home)
        except TrustError as error:
            log.warning("%s; going on with the keys at hand", error)
        assert last.keys is not None  # noqa: S101 - a role does not change
        return node.Coordinator(last.address, last.ca, last.keys, last.node_id)

    metrics, stop = ClientMetrics(), threading.Event()
    with alone(home), logs.about(site=joined.institution):
        workbench = MeteredWorkbench(metrics, insecure_randomness())
        site = build_site(home, joined.institution, workbench, stop)

        def answer(packet: wire.Packet) -> wire.Packet:
            reply = site.answer(packet)
            give_back_memory()
            envoy.wake.set()
            return reply

        if scrape.stays_here():
            metrics.show_spending(lambda: statements(home))
        daemon = Daemon(home, metrics)
        envoy = Desk.of(home).envoy

        def end(*_: object) -> None:
            stop.set()
            envoy.wake.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        visiting = threading.Thread(
            target=envoy.keep_visiting, args=(stop,), name="envoy", daemon=True
        )
        visiting.start()
        with scrape.serving(metrics.registry, metrics_port):
            log.info("%s serves; the ledger and the gate are in %s", site.name, home.folder)
            node.serve(coordinator, daemon.watched(answer), stop, daemon)
        visiting.join(_GOODBYE_SECONDS)
        log.info("%s has stopped", site.name)
