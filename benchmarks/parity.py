"""One site without privacy is plain fine-tuning: both for 20 steps, compared at each.

One round is one local SGD step through the site's trainer, from the adapter that the round
before gave. The other side is PyTorch and PEFT alone, with one padded batch a step.
"""

import numpy as np
import peft
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

import _minilm
from _report import arguments, report
from fedpact.client.trainer import LocalTraining, Trainer
from fedpact.common import base_models
from fedpact.common import model as models

ROUNDS, RECORDS, BATCH, LEARNING_RATE = 20, 96, 32, 0.5


def plain_model() -> nn.Module:
    """The base model with PEFT's own LoRA, no dropout."""
    folder = base_models.locate(_minilm.study().model)
    base = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=8,
        lora_alpha=16,
        target_modules=["query", "value"],
        modules_to_save=["classifier"],
    )
    model: nn.Module = peft.get_peft_model(base, config)
    return model.train()


def main() -> None:
    args = arguments(__doc__)
    study = _minilm.study("fedavg")
    resident = models.build(study, _minilm.CPU)
    trainer = Trainer(resident, _minilm.task(), pad_id=_minilm.PAD_ID, device=_minilm.CPU)
    start = adapter = models.get_adapter(resident)
    how = LocalTraining(
        steps=1, batch_size=BATCH, learning_rate=LEARNING_RATE, optimizer="sgd", max_tokens=1024
    )
    records = _minilm.records(np.random.default_rng(0).integers(5, 65, RECORDS))
    everything = records.collate(np.arange(RECORDS), pad_id=_minilm.PAD_ID, device=_minilm.CPU)

    plain = plain_model()
    peft.set_peft_model_state_dict(
        plain, {n: torch.from_numpy(t.copy()) for n, t in adapter.tensors().items()}
    )
    optimizer = torch.optim.SGD(
        [p for p in plain.parameters() if p.requires_grad], lr=LEARNING_RATE
    )
    loss_differences, weight_differences, losses = [], [], []
    for number in range(ROUNDS):
        change = trainer.train(adapter, records, how, np.random.default_rng(number)).change
        adapter = adapter.plus(change)
        losses.append(trainer.evaluate(adapter, records).loss)

        chosen = np.random.default_rng(number).permutation(RECORDS)[:BATCH]
        inputs = {name: value[chosen] for name, value in everything.items()}
        plain(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        plain.eval()
        with torch.no_grad():
            loss = float(plain(**everything).loss)
        plain.train()

        state = peft.get_peft_model_state_dict(plain)
        loss_differences.append(abs(loss - losses[-1]))
        weight_differences.append(
            max(
                float(np.abs(state[name].numpy() - tensor).max())
                for name, tensor in adapter.tensors().items()
            )
        )
    report(
        title="One site without privacy against plain fine-tuning: largest difference",
        figure=max(*loss_differences, *weight_differences),
        target="<= 1e-5",
        parts={
            "largest_loss_difference": max(loss_differences),
            "largest_weight_difference": max(weight_differences),
            "largest_weight_change": float(np.abs(adapter.flat - start.flat).max()),
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "rounds": ROUNDS,
        },
        form=args.format,
    )


if __name__ == "__main__":
    main()
