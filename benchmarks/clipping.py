"""How exact each record's gradient is: error against one record at a time by autograd.

MiniLM with A, B and head trained; the records have unequal lengths, so that the batch is
padded and the single records are not.
"""

import numpy as np
import torch

import _minilm
from _report import arguments, report
from fedpact.client.dpsgd import RecordHooks
from fedpact.common import model as models

RECORDS = 16


def main() -> None:
    args = arguments(__doc__)
    model = models.build(_minilm.study("fedavg"), _minilm.CPU)
    torch.manual_seed(0)
    for name, parameter in models.adapter_parameters(model).items():
        if ".lora_A." not in name:  # B and head start at zero, where A has no gradient
            torch.nn.init.normal_(parameter, std=0.05)
    trained = [p for p in model.parameters() if p.requires_grad]
    task = _minilm.task()
    records = _minilm.records(np.random.default_rng(0).integers(5, 65, RECORDS))

    def losses_of(indices: list[int]) -> torch.Tensor:
        batch = records.collate(np.asarray(indices), pad_id=_minilm.PAD_ID, device=_minilm.CPU)
        return task.loss(model, batch)[0]

    alone = [
        torch.cat([g.flatten() for g in torch.autograd.grad(losses_of([i]).sum(), trained)])
        for i in range(RECORDS)
    ]
    hooks = RecordHooks(model, loss_reduction="sum")
    losses_of(list(range(RECORDS))).sum().backward()  # type: ignore[no-untyped-call]
    together = torch.cat([p.grad_sample.flatten(1) for p in trained], dim=1)  # type: ignore[attr-defined]
    hooks.cleanup()
    errors = [
        float((found - exact).norm() / exact.norm())
        for found, exact in zip(together, alone, strict=True)
    ]
    report(
        title="Largest relative error of a record's gradient (L2, fp32)",
        figure=max(errors),
        target="<= 1e-5",
        parts={
            "records": RECORDS,
            "parameters": together.shape[1],
            "median_error": float(np.median(errors)),
            "smallest_gradient_norm": float(min(g.norm() for g in alone)),
            "largest_gradient_norm": float(max(g.norm() for g in alone)),
        },
        form=args.format,
    )


if __name__ == "__main__":
    main()
