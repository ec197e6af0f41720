"""Tasks that hide a part of each record: what is hidden when, and that a record stays one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpact.client import dpsgd
from fedpact.client.trainer import LocalTraining, Trainer
from fedpact.common import model as models
from fedpact.common import tasks
from fedpact.common.mechanism import SubsampledGaussian
from fedpact.common.study import Study
from support.task_studies import encoded, learned

CPU = torch.device("cpu")
SECTIONS = {
    "masked-language-modelling": {},
    "item-recommendation": {"labels": ["itch", "coma", "shock"]},
}


def a_study(tiny, name, **adapter) -> Study:
    document = tiny.document()
    document["adapter"] |= adapter
    document["task"] = {"name": name, **SECTIONS[name]}
    return Study.model_validate(document)


@pytest.mark.parametrize("name", SECTIONS)
def test_what_is_hidden_is_drawn_anew_in_each_step_and_not_for_a_self_test(tiny, name):
    hiding = a_study(tiny, name)
    task, model = tasks.for_study(hiding), models.build(hiding, CPU)
    losses = []

    class Watched(Trainer):
        def losses(self, *args):
            losses.append(super().losses(*args))
            return losses[-1]

    trainer = Watched(model, task, pad_id=0, device=CPU)
    how = LocalTraining(8, 4, 1e-9, mechanism=SubsampledGaussian(1.0, 1.0, 8))
    for one in (how, replace(how, anew=False)):
        trainer.train(models.get_adapter(learned(hiding)), encoded(hiding), one)
    anew, same = (torch.stack(part).detach() for part in (losses[:8], losses[8:]))
    assert len(anew.sum(dim=1).unique()) > 3
    torch.testing.assert_close(same, same[:1].expand(8, -1))


@pytest.mark.parametrize("adapted", ["value", "decoder"])  # the last layer, which has all words
def test_a_record_with_nothing_to_hide_loses_nothing_and_has_its_row(tiny, adapted):
    study = a_study(tiny, "masked-language-modelling", target_modules=["query", adapted])
    task, model = tasks.for_study(study), learned(study)
    task_rows = {"text": ["the patient had a coma", "\u200b"]}
    records = encoded(study, task_rows)
    batch = records.collate(np.arange(2), pad_id=0, device=CPU)
    hooks = dpsgd.RecordHooks(model, loss_reduction="sum")
    try:
        losses, output = task.loss(model, batch)
        losses.sum().backward()
        samples = [p.grad_sample for p in model.parameters() if p.requires_grad]
    finally:
        hooks.cleanup()
    assert losses[0] > 0
    assert losses[1] == 0
    assert task.score(output, batch)[1] == 0
    assert all(len(sample) == 2 and not sample[1].any() for sample in samples)
    assert any(sample[0].any() for sample in samples)
