"""The self-test: each way in which DP-SGD goes wrong in silence is found before anything is spent."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedpact.client import dpsgd, selftest, site, trainer
from fedpact.client.agreements import Agreements
from fedpact.client.batching import poisson_batches, shuffled_batches
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.up import build_site
from fedpact.client.workbench import Workbench
from fedpact.common import identity, wire
from fedpact.common import model as models
from fedpact.common.mechanism import SubsampledGaussian
from support.site_factory import INSTITUTION, update_request
from support.tiny_bert import write_data

KEY = identity.new_signing_key()


def no_noise(patch):
    def quiet(self):
        for parameter in self.params:
            parameter.grad = parameter.summed_grad

    patch.setattr(dpsgd._NoisyOptimizer, "add_noise", quiet)


def half_the_noise(patch):
    draw = dpsgd.standard_normal
    patch.setattr(dpsgd, "standard_normal", lambda shape, rng: draw(shape, rng) / 2)


def one_noise_for_all_steps(patch):
    add = dpsgd._NoisyOptimizer.add_noise

    def again(self):
        self.rng = np.random.default_rng(0)
        add(self)

    patch.setattr(dpsgd._NoisyOptimizer, "add_noise", again)


def empty_steps_are_left_out(patch):
    add, apply = dpsgd.PrivateStep.add, dpsgd.PrivateStep.apply

    def note(self, *args):
        self.came = True
        add(self, *args)

    patch.setattr(dpsgd.PrivateStep, "add", note)
    patch.setattr(
        dpsgd.PrivateStep, "apply", lambda self: apply(self) if hasattr(self, "came") else None
    )


def whole_passes(patch):
    patch.setattr(
        trainer,
        "poisson_batches",
        lambda n, q, rng: shuffled_batches(n, max(1, round(n * q)), rng),
    )


def twice_the_rate(patch):
    patch.setattr(
        trainer, "poisson_batches", lambda n, q, rng: poisson_batches(n, min(1.0, 2 * q), rng)
    )


def neighbours_together(patch):
    """Each record at rate q, but the even ones and those after them always together."""

    def pairs(n, q, rng):
        for batch in poisson_batches(-(-n // 2), q, rng):
            both = np.concatenate((2 * batch, 2 * batch + 1))
            yield both[both < n]

    patch.setattr(trainer, "poisson_batches", pairs)


def with_step_arguments(patch, change):
    make = dpsgd.PrivateStep.__init__
    patch.setattr(
        dpsgd.PrivateStep,
        "__init__",
        lambda self, *args, **given: make(self, *args, **{**given, **change(given)}),
    )


def the_drawn_divisor(patch):
    with_step_arguments(patch, lambda given: {"expected_batch_size": 4})


def ten_times_the_clipping_norm(patch):
    with_step_arguments(
        patch,
        lambda given: {
            "max_grad_norm": 10 * given["max_grad_norm"],
            "noise_multiplier": given["noise_multiplier"] / 10,
        },
    )


def gradients_of_others(patch):
    own = dpsgd._linear_in_float32

    def mixed(layer, activations, backprops):
        found = own(layer, activations, backprops)
        return {p: s.mean(dim=0, keepdim=True).expand_as(s).clone() for p, s in found.items()}

    patch.setitem(dpsgd.RecordHooks.GRAD_SAMPLERS, nn.Linear, mixed)


def parameters_that_are_not_the_models(patch):
    def elsewhere(model, how):
        copies = [
            nn.Parameter(p.detach().clone()) for p in model.parameters() if p.requires_grad
        ]
        return torch.optim.SGD(copies, lr=how.learning_rate)

    patch.setattr(trainer, "_optimizer", elsewhere)


def nothing_is_stepped(patch):
    patch.setattr(dpsgd.PrivateStep, "apply", lambda self: None)


def evaluation_mode(patch):
    train = nn.Module.train

    def never(module, mode=True):
        return (
            train(module, mode=False)
            if "Peft" in type(module).__name__
            else train(module, mode)
        )

    patch.setattr(nn.Module, "train", never)


def more_than_the_study_trains(patch):
    def everything(model, study, number):
        for parameter in models.adapter_parameters(model).values():
            parameter.requires_grad = True

    patch.setattr(models, "set_trained", everything)


def too_little_noise_reserved(patch):
    plan = site.plan

    def cheap(study, institution):
        found = plan(study, institution)
        return SubsampledGaussian(found.noise_multiplier / 2, found.sample_rate, found.steps)

    patch.setattr(site, "plan", cheap)


def more_steps_than_reserved(patch):
    patch.setattr(trainer, "islice", lambda batches, steps: islice(batches, steps + 1))


FAULTS = {
    no_noise: "changed nothing",
    half_the_noise: "noise that was reserved",
    one_noise_for_all_steps: "noise that was reserved",
    empty_steps_are_left_out: "changed nothing",
    whole_passes: "Poisson",
    twice_the_rate: "Poisson",
    neighbours_together: "Poisson",
    the_drawn_divisor: "expected batch",
    ten_times_the_clipping_norm: "clipped sum",
    gradients_of_others: "not its own",
    parameters_that_are_not_the_models: "optimiser does not hold",
    nothing_is_stepped: "changed nothing",
    evaluation_mode: "evaluation mode",
    more_than_the_study_trains: "does not move what",
    too_little_noise_reserved: "does not keep",
    more_steps_than_reserved: "do not count",
}


def a_site(folder, workbench, study):
    home = ClientHome(folder / "home")
    Datasets(home.open_database()).add("notes", write_data(folder / "notes.csv"))
    home.policy.write_text("allow_model_folders = true\n", encoding="utf-8")
    Agreements(home.open_database()).decide(KEY, INSTITUTION, study, "approve")
    return build_site(home, INSTITUTION, workbench)


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_fault_is_a_refusal_that_costs_nothing(tmp_path, tiny, monkeypatch, plant):
    plant(monkeypatch)
    workbench, study = Workbench(), tiny.study()
    here = a_site(tmp_path, workbench, study)
    first = models.initial_weights(workbench.model(study).module, 0)
    header, _ = wire.unpack(here.answer(update_request(study, first)))
    assert isinstance(header, wire.Refusal)
    assert header.code == "training"
    assert "self-test" in header.reason
    assert FAULTS[plant] in header.reason
    assert here.ledger.history("notes") == []
    with pytest.raises(selftest.TrainingError, match=FAULTS[plant]):
        workbench.self_test(study, INSTITUTION, "r2", 1, site.plan(study, INSTITUTION))


def test_a_site_that_was_mended_answers_the_round_that_it_had_refused(
    tmp_path, tiny, monkeypatch
):
    workbench, study = Workbench(), tiny.study()
    here = a_site(tmp_path, workbench, study)
    request = update_request(study, models.initial_weights(workbench.model(study).module, 0))
    with monkeypatch.context() as patch:
        half_the_noise(patch)
        assert isinstance(wire.unpack(here.answer(request))[0], wire.Refusal)
    assert isinstance(wire.unpack(here.answer(request))[0], wire.UpdateHeader)


SECTIONS = {
    "as it is": {},
    "fedavg": {"aggregation": {"method": "fedavg"}},
    "dropout": {"training": {"dropout": True}, "adapter": {"lora_dropout": 0.2}},
    "sgd": {"training": {"optimizer": "sgd", "weight_decay": 0.1, "learning_rate": 1e-8}},
    "bf16": {"training": {"precision": "bf16"}},
    "whole batch": {"training": {"batch_size": 500}},
    "a tiny rate": {
        "training": {"batch_size": 2},
        "privacy": {"target_epsilon": 0.5},
        "institutions": {"records": 2_000},
    },
    "a small norm": {"privacy": {"max_grad_norm": 1e-4}},
    "automatic clipping": {"privacy": {"clipping": "automatic"}},
    "a mean over tokens": {"model": {"pooling": "mean"}},
    "not private": {"privacy": {"mechanism": "none"}},
}


@pytest.mark.parametrize("named", SECTIONS)
def test_what_is_right_passes_and_leaves_the_model_as_it_was(tiny, named):
    sections = dict(SECTIONS[named])
    if "institutions" in sections:
        one = {"name": INSTITUTION, "sector": "academia", **sections["institutions"]}
        sections["institutions"] = [one]
    workbench, study = Workbench(), tiny.study(**sections)
    module = workbench.model(study).module
    received = models.initial_weights(module, seed=3)
    models.set_adapter(module, received)
    shares = [m.p for m in module.modules() if isinstance(m, nn.Dropout)]
    workbench.self_test(study, INSTITUTION, "r1", 1, site.plan(study, INSTITUTION))
    assert models.get_adapter(module).digest == received.digest
    assert shares == [m.p for m in module.modules() if isinstance(m, nn.Dropout)]
    assert module.training
    assert all(parameter.grad is None for parameter in module.parameters())


def test_it_is_done_once_in_a_run(tiny, monkeypatch):
    workbench, study = Workbench(), tiny.study()
    mechanism = site.plan(study, INSTITUTION)
    workbench.self_test(study, INSTITUTION, "r1", 1, mechanism)
    no_noise(monkeypatch)
    workbench.self_test(study, INSTITUTION, "r1", 1, mechanism)
    with pytest.raises(selftest.TrainingError):
        workbench.self_test(study, INSTITUTION, "r2", 1, mechanism)


def test_under_rolora_each_factor_is_tested_in_the_first_round_that_trains_it(
    tiny, monkeypatch
):
    workbench, study = Workbench(), tiny.study(aggregation={"method": "rolora"})
    mechanism = site.plan(study, INSTITUTION)
    received = models.initial_weights(workbench.model(study).module, seed=3)
    for number in (1, 2):
        workbench.fit(study, INSTITUTION, received, number)
        workbench.self_test(study, INSTITUTION, "r1", number, mechanism)
    with pytest.raises(selftest.TrainingError, match="does not move what"):
        workbench.self_test(study, INSTITUTION, "r2", 1, mechanism)  # A is what is made ready
    no_noise(monkeypatch)
    for number in (3, 4):  # neither is new
        workbench.fit(study, INSTITUTION, received, number)
        workbench.self_test(study, INSTITUTION, "r1", number, mechanism)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    q=st.floats(1e-5, 1),
    trials=st.integers(1, 3000),
    n=st.integers(1, 99),
)
def test_independent_draws_are_never_called_anything_else(seed, q, trials, n):
    counts = np.random.default_rng(seed).binomial(trials, q, n).astype(float)
    assert selftest._is_dispersed(counts, trials, q)


@pytest.mark.parametrize("q", [0.01, 0.2, 0.5])
def test_counts_that_vary_too_little_or_too_much_are_found(q):
    assert not selftest._is_dispersed(np.full(64, round(1600 * q)) * 1.0, 1600, q)
    drawn = np.random.default_rng(0).binomial(400, q, 64) * 4.0
    assert not selftest._is_dispersed(drawn, 1600, q)
