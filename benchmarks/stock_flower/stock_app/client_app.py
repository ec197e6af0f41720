"""The ClientApp: one optimiser step in `train`, one batch in `evaluate`."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from .task import build, get_arrays, load_batch, set_arrays

app = ClientApp()


def _load(message: Message, context: Context) -> tuple[nn.Module, dict[str, Tensor]]:
    config = context.run_config
    base = str(config["base"])
    model = build(base)
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    set_arrays(model, arrays)
    batch = load_batch(
        str(context.node_config["data"]),
        base,
        int(config["batch-size"]),
        int(config["max-length"]),
    )
    return model, batch


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the adapter for one step."""
    model, batch = _load(message, context)
    model.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=float(context.run_config["learning-rate"]),
    )
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    metrics = MetricRecord({"train_loss": float(loss), "num-examples": len(batch["labels"])})
    content = RecordDict({"arrays": get_arrays(model), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the adapter on one batch."""
    model, batch = _load(message, context)
    model.eval()
    with torch.no_grad():
        output = model(**batch)
    right = (output.logits.argmax(dim=1) == batch["labels"]).float().mean()
    metrics = MetricRecord(
        {
            "eval_loss": float(output.loss),
            "eval_acc": float(right),
            "num-examples": len(batch["labels"]),
        }
    )
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
