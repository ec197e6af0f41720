"""A site whose rank is its own, and one that is sent what was added to the frozen weights."""

import numpy as np
import pytest

from fedpact.client.agreements import Agreements
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.up import build_site
from fedpact.client.workbench import Workbench
from fedpact.common import identity, wire
from fedpact.common import model as models
from fedpact.common.adapter import Weights
from support.site_factory import INSTITUTION, update_request
from support.tiny_bert import RECORDS, write_data


@pytest.fixture(scope="module")
def workbench() -> Workbench:
    return Workbench()


@pytest.fixture
def ask(tmp_path, tiny, workbench):
    """Ask a site of a rank, with DP or without; its reply, taken apart."""
    home = ClientHome(tmp_path / "home")
    Datasets(home.open_database()).add("notes", write_data(tmp_path / "notes.csv"))
    home.policy.write_text("allow_model_folders = true\nrequire_dp = false\n", encoding="utf-8")
    site = build_site(home, INSTITUTION, workbench)

    def asked(
        method, rank=None, prepare=lambda weights: weights, mechanism="dp-sgd", run="r1", r=4
    ):
        one = {"name": INSTITUTION, "sector": "academia", "records": RECORDS}
        study = tiny.study(
            adapter={"r": r},
            aggregation={"method": method},
            privacy={"mechanism": mechanism},
            # One step on all records: without DP, nothing is left to chance.
            training={"local_steps": 1, "batch_size": RECORDS},
            institutions=[{**one, **({"r": rank} if rank else {})}],
        )
        key = identity.new_signing_key()
        Agreements(home.open_database()).decide(key, INSTITUTION, study, "approve")
        module = workbench.model(study).module
        models.set_rank(module, r)
        first = models.initial_weights(module, study.training.seed)
        reply = site.answer(update_request(study, prepare(first), run=run))
        return wire.unpack(reply), first, site.ledger.history("notes")

    return asked


def with_residual(weights: Weights, rank=3) -> Weights:
    rng = np.random.default_rng(0)
    tensors = weights.tensors()
    for b, a in weights.manifest.pairs():
        (d_out, _), (_, d_in) = tensors[b].shape, tensors[a].shape
        tensors[b.replace("lora_B", "residual_B")] = rng.normal(0, 0.3, (d_out, rank))
        tensors[a.replace("lora_A", "residual_A")] = rng.normal(0, 0.3, (rank, d_in))
    return Weights.from_tensors(tensors)


@pytest.mark.parametrize("mechanism", ["dp-sgd", "none"])
@pytest.mark.parametrize("method", ["flora", "flexlora", "hetlora"])
def test_a_site_trains_an_adapter_of_its_own_rank_and_sends_no_more(ask, method, mechanism):
    (header, change), first, _ = ask(method, 2, lambda w: w.of_rank(2), mechanism)
    assert header.kind == "update", header
    assert change.manifest == first.manifest.of_rank(2)
    assert change.norm > 0


def test_one_of_another_rank_is_refused_and_costs_nothing(ask):
    for rank in (1, 3, 4):
        (header, _), _, history = ask("flora", 2, lambda w, rank=rank: w.of_rank(rank))
        assert (header.kind, header.code) == ("refusal", "model")
        assert "does not fit" in header.reason
        assert history == []


@pytest.mark.parametrize("method", ["flora", "fedex-lora"])
def test_what_was_added_to_the_frozen_weights_counts_and_does_not_come_back(ask, method):
    changes = {}
    for run, prepare in (("r1", with_residual), ("r2", lambda w: w), ("r3", with_residual)):
        (header, change), first, _ = ask(method, None, prepare, "none", run)
        assert header.kind == "update", header
        assert change.manifest == first.manifest
        changes[run] = change.flat
    np.testing.assert_allclose(changes["r1"], changes["r3"], atol=1e-6)
    assert np.abs(changes["r1"] - changes["r2"]).max() > 1e-3


@pytest.mark.parametrize("method", ["fedavg", "flexlora", "ffa-lora"])
def test_it_is_refused_where_the_method_adds_nothing(ask, method):
    (header, _), _, history = ask(method, None, with_residual)
    assert (header.kind, header.code) == ("refusal", "model")
    assert history == []


def test_it_is_refused_where_it_fits_no_layer(ask):
    (header, _), _, history = ask("flora", None, lambda w: with_residual(w, rank=40))
    assert (header.kind, header.code) == ("refusal", "model")
    assert history == []
