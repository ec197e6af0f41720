"""DP-SGD used right: each trap known in the field has a test here."""

import contextlib

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from fedpact.client.dpsgd import PlainStep, PrivateStep, standard_normal
from fedpact.common.errors import TrainingError

CLIP = 0.05


def tiny_model(*, freeze_a=False, dropout=0.0):
    torch.manual_seed(0)
    base = BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            num_labels=3,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )
    model = peft.get_peft_model(
        base,
        peft.LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=["classifier"]),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # not zero, or A would have no gradient
            torch.nn.init.normal_(parameter, std=0.2)
        if freeze_a and "lora_A" in name:
            parameter.requires_grad = False
    return model.train()


def batch_of(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 50, (size, 12), generator=generator)
    lengths = torch.randint(2, 13, (size,), generator=generator)
    mask = (torch.arange(12) < lengths[:, None]).long()
    return ids * mask, mask, torch.randint(0, 3, (size,), generator=generator)


def losses_of(model, batch):
    ids, mask, labels = batch
    logits = model(input_ids=ids, attention_mask=mask).logits
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def part(batch, start, end):
    return tuple(tensor[start:end] for tensor in batch)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def sgd(model):
    return torch.optim.SGD(trained(model), lr=1.0)


def private(model, *, noise=0.0, clip=CLIP, clipping="flat", expected=4.0, seed=0):
    return PrivateStep(
        model,
        sgd(model),
        noise_multiplier=noise,
        max_grad_norm=clip,
        clipping=clipping,
        expected_batch_size=expected,
        rng=np.random.default_rng(seed),
    )


def change(model, batches, **settings):
    """What one private step with learning rate 1 subtracts; the model is put back."""
    before = [p.detach().clone() for p in trained(model)]
    with private(model, **settings) as step:
        for batch in batches:
            step.add(losses_of(model, batch))
        step.apply()
    moved = flat(before) - flat(trained(model))
    with torch.no_grad():
        for parameter, value in zip(trained(model), before, strict=True):
            parameter.copy_(value)
    return moved


def gradients_one_by_one(model, batch):
    rows = []
    for i in range(len(batch[0])):
        loss = losses_of(model, part(batch, i, i + 1)).sum()
        rows.append(flat(torch.autograd.grad(loss, trained(model))))
    return torch.stack(rows)


@pytest.mark.parametrize("freeze_a", [False, True])
def test_each_record_is_clipped_over_all_parameters_together(freeze_a):
    model, batch = tiny_model(freeze_a=freeze_a), batch_of(6)
    gradients = gradients_one_by_one(model, batch)
    norms = gradients.norm(dim=1)
    clip = float(norms.median())  # some are clipped, some are not
    factors = (clip / norms).clamp(max=1)
    expected = (factors[:, None] * gradients).sum(dim=0) / 4
    torch.testing.assert_close(
        change(model, [batch], clip=clip), expected, rtol=1e-5, atol=1e-6
    )


def test_automatic_clipping_brings_every_record_to_nearly_the_norm():
    model, batch = tiny_model(), batch_of(6)
    gradients = gradients_one_by_one(model, batch)
    norms = gradients.norm(dim=1, keepdim=True)
    for clip in (0.01, 3.0):
        expected = (clip * gradients / (norms + 0.01)).sum(dim=0) / 4
        found = change(model, [batch], clip=clip, clipping="automatic")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * clip)


def test_under_automatic_clipping_the_norm_only_scales_the_step():
    model, batch = tiny_model(), batch_of(6)
    one, tenth = (
        change(model, [batch], clip=clip, noise=1.0, clipping="automatic") for clip in (1, 0.1)
    )
    torch.testing.assert_close(one, 10 * tenth, rtol=1e-3, atol=1e-5)


def test_gradients_are_of_each_record_where_nothing_is_clipped():
    model, batch = tiny_model(), batch_of(3)
    for i in range(3):
        alone = gradients_one_by_one(model, part(batch, i, i + 1))[0]
        without = [part(batch, j, j + 1) for j in range(3) if j != i]
        found = change(model, [batch], clip=1e9, expected=1) - change(
            model, without, clip=1e9, expected=1
        )
        assert (found - alone).norm() / alone.norm() < 1e-5


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999),
    clip=st.floats(1e-3, 10),
    size=st.integers(0, 5),
    clipping=st.sampled_from(["flat", "automatic"]),
)
def test_one_record_more_changes_the_sum_by_at_most_the_clipping_norm(
    seed, clip, size, clipping
):
    model, batch = tiny_model(), batch_of(size + 1, seed)
    how = {"clip": clip, "clipping": clipping, "expected": 1}
    with_it = change(model, [batch], **how)
    without = change(model, [part(batch, 0, size)] if size else [], **how)
    assert (with_it - without).norm() <= clip * (1 + 1e-4)


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e38])
def test_a_record_that_overflows_changes_the_sum_by_no_more_than_any_other(value, clipping):
    """Its token's embedding is one that a hostile model or adapter could have made."""
    model, whole = tiny_model(), batch_of(5)
    ids, mask, labels = whole
    ids[:, 1] = ids[:, 1].clamp(max=48)
    ids[4, 1] = 49  # a word that no other record has
    ids[:4][ids[:4] == 49] = 1
    with torch.no_grad():
        model.get_input_embeddings().weight[49] = value
    batch = (ids * mask, mask, labels)
    without = change(model, [part(batch, 0, 4)], clipping=clipping)
    with_it = change(model, [batch], clipping=clipping)
    assert torch.isfinite(with_it).all()
    assert 4.0 * (with_it - without).norm() <= CLIP * (1 + 1e-3)


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_how_a_logical_batch_is_cut_changes_nothing(noise):
    model, batch = tiny_model(), batch_of(6)
    whole = change(model, [batch], noise=noise)
    for size in (1, 2, 4):
        cut = [part(batch, i, i + size) for i in range(0, 6, size)]
        torch.testing.assert_close(change(model, cut, noise=noise), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("micro_batches", [0, 1, 4])
def test_noise_has_the_agreed_size_once_whatever_came(micro_batches):
    model, noise, expected = tiny_model(), 2.0, 8.0
    batches = [batch_of(2, seed) for seed in range(micro_batches)]
    with_noise = change(model, batches, noise=noise, expected=expected)
    added = with_noise - change(model, batches, expected=expected)
    std = noise * CLIP / expected
    assert abs(added.std() / std - 1) < 5 / (2 * len(added)) ** 0.5
    assert abs(added.mean()) < 5 * std / len(added) ** 0.5


def test_noise_reaches_every_trained_parameter_and_differs_between_steps():
    model = tiny_model()
    one, other = (change(model, [], noise=1.0, seed=seed) for seed in (1, 2))
    assert (one != 0).all()
    assert not torch.equal(one, other)
    with private(model, noise=1.0) as step:
        start = flat(trained(model))
        step.apply()
        first = flat(trained(model))
        step.apply()
        second = flat(trained(model))
    assert not torch.allclose(first - start, second - first, rtol=0, atol=1e-6)


def test_without_a_generator_noise_is_new_each_time():
    def drawn():
        model = tiny_model()
        step = PrivateStep(
            model, sgd(model), noise_multiplier=1, max_grad_norm=1, expected_batch_size=1
        )
        step.apply()
        return flat(trained(model))

    assert not torch.equal(drawn(), drawn())


def test_sums_are_divided_by_the_expected_size_not_the_drawn_one():
    model, batch = tiny_model(), batch_of(6)
    torch.testing.assert_close(
        change(model, [batch], expected=4), 25 * change(model, [batch], expected=100)
    )


def test_noise_is_standard_normal_and_rounded_only_once_added():
    drawn = standard_normal((100, 200), np.random.default_rng(0))
    assert drawn.dtype == torch.float64
    assert abs(drawn.var() - 1) < 0.05
    assert abs(drawn.pow(4).mean() - 3) < 0.3  # Gaussian, not another with that variance


def test_only_what_is_trained_moves():
    model = tiny_model(freeze_a=True)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    with private(model, noise=1.0) as step:
        losses = losses_of(model, batch_of(2))
        watched = [n for n, m in model.named_modules() if "activations" in vars(m)]
        step.add(losses)
        step.apply()
    assert watched
    assert all("lora_B" in n or "modules_to_save" in n for n in watched)
    for name, parameter in model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name])


@pytest.mark.parametrize("when", ["before", "after"])
def test_evaluation_mode_is_refused(when):
    model = tiny_model()
    if when == "before":
        model.eval()
    with private(model) as step:
        model.eval()
        losses = losses_of(model, batch_of(2))
        with pytest.raises(TrainingError, match="evaluation mode"):
            step.add(losses)


def test_a_head_alone_in_evaluation_mode_is_refused():
    model = tiny_model()
    with private(model) as step:
        model.base_model.model.classifier.eval()
        losses = losses_of(model, batch_of(2))
        with pytest.raises(TrainingError, match="evaluation mode"):
            step.add(losses)


def move(model):
    """Move a model in the way that replaces its parameters, as some moves do."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.to(torch.float64)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def test_a_model_moved_before_wrapping_but_after_the_optimizer_is_refused():
    """Loss would be computed, ε counted, and nothing trained."""
    model = tiny_model()
    optimizer = sgd(model)
    move(model)
    with pytest.raises(TrainingError, match="does not hold"):
        PrivateStep(
            model, optimizer, noise_multiplier=1, max_grad_norm=1, expected_batch_size=1
        )


@pytest.mark.parametrize("door", ["add", "apply"])
def test_a_model_moved_after_wrapping_is_refused(door):
    model = tiny_model()
    with private(model) as step:
        losses = losses_of(model, batch_of(2))
        move(model)
        with pytest.raises(TrainingError, match="does not hold"):
            step.add(losses) if door == "add" else step.apply()


def test_an_optimizer_over_part_of_what_is_trained_is_refused():
    model = tiny_model()
    optimizer = torch.optim.SGD(trained(model)[1:], lr=1.0)
    with pytest.raises(TrainingError, match="does not hold"):
        PrivateStep(
            model, optimizer, noise_multiplier=1, max_grad_norm=1, expected_batch_size=1
        )


def test_losses_from_before_the_hooks_are_refused():
    model = tiny_model()
    losses = losses_of(model, batch_of(2))
    with private(model) as step, pytest.raises(TrainingError, match="each record"):
        step.add(losses)
    assert all(parameter.grad is None for parameter in trained(model))


def test_a_step_that_was_given_up_leaves_nothing_behind():
    model, batch = tiny_model(), batch_of(4)
    clean = change(model, [batch])
    with contextlib.suppress(KeyboardInterrupt), private(model) as step:
        step.add(losses_of(model, batch_of(3, seed=7)))
        losses_of(model, batch_of(5, seed=8))
        raise KeyboardInterrupt
    assert not any(hasattr(m, "activations") for m in model.modules())
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in model.parameters())
    assert torch.equal(change(model, [batch]), clean)


def test_bf16_is_clipped_as_exactly_as_fp32():
    model, batch = tiny_model(), batch_of(1)
    with private(model, expected=1) as step:
        before = flat(trained(model))
        with torch.autocast("cpu", torch.bfloat16):
            losses = losses_of(model, batch)
        step.add(losses)
        step.apply()
    moved = before - flat(trained(model))
    assert abs(moved.norm() / CLIP - 1) < 1e-4
    exact = change(model, [batch], expected=1)
    assert functional.cosine_similarity(moved, exact, dim=0) > 0.99


def test_dropout_is_active_in_the_private_step():
    model, batch = tiny_model(dropout=0.5), batch_of(4)
    assert not torch.allclose(change(model, [batch]), change(model, [batch]))


@pytest.mark.parametrize("size", [6, 2, 4])
def test_the_plain_step_takes_the_mean_over_what_came(size):
    model, batch = tiny_model(), batch_of(6)
    mean = flat(torch.autograd.grad(losses_of(model, batch).mean(), trained(model)))
    before = flat(trained(model))
    step = PlainStep(sgd(model))
    for _ in range(2):  # the second step starts anew
        for start in range(0, 6, size):
            step.add(losses_of(model, part(batch, start, start + size)))
        step.apply()
        moved = before - flat(trained(model))
        torch.testing.assert_close(moved, mean, rtol=1e-5, atol=1e-6)
        mean = flat(torch.autograd.grad(losses_of(model, batch).mean(), trained(model)))
        before = flat(trained(model))


def test_a_plain_step_that_was_given_up_leaves_nothing_behind():
    model, batch = tiny_model(), batch_of(4)
    PlainStep(sgd(model)).add(losses_of(model, batch_of(3, seed=7)))
    mean = flat(torch.autograd.grad(losses_of(model, batch).mean(), trained(model)))
    before = flat(trained(model))
    step = PlainStep(sgd(model))
    step.add(losses_of(model, batch))
    step.apply()
    torch.testing.assert_close(before - flat(trained(model)), mean, rtol=1e-5, atol=1e-6)
