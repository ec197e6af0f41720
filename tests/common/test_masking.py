"""A language model's last layer, computed for some tokens alone: the same logits, fewer of them."""

import pytest
import torch
import transformers

from fedpact.common.tasks.masking import logits_at

WORDS, HIDDEN = 101, 32
_BERT = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": WORDS,
}
FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": {**_BERT, "embedding_size": HIDDEN},
    "albert": {**_BERT, "embedding_size": HIDDEN},
    "deberta-v2": _BERT,
    "modernbert": {**_BERT, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
    "distilbert": {"dim": HIDDEN, "n_layers": 1, "n_heads": 2, "vocab_size": WORDS},
    # Multiplies by its last layer's weights without calling it.
    "mobilebert": {
        **_BERT,
        "embedding_size": 16,
        "true_hidden_size": 16,
        "intra_bottleneck_size": 16,
    },
}


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def language_model(family: str):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    model = transformers.AutoModelForMaskedLM.from_config(config).eval()
    return model.requires_grad_(requires_grad=False)


def some_tokens() -> tuple[dict, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, WORDS, (3, 8), generator=generator)
    places = torch.rand((3, 8), generator=generator) < 0.3
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, places


def seen_by_last_layer(model, call) -> list[tuple[int, ...]]:
    """The shapes of what the last layer is given meanwhile."""
    shapes = []
    layer = model.get_output_embeddings()
    watching = layer.register_forward_hook(lambda _, given, __: shapes.append(given[0].shape))
    call()
    watching.remove()
    return [tuple(shape) for shape in shapes]


def test_logits_are_those_of_the_whole_model(family):
    model, (read, places) = language_model(family), some_tokens()
    torch.testing.assert_close(logits_at(model, read, places), model(**read).logits[places])
    nowhere = torch.zeros_like(places)
    assert logits_at(model, read, nowhere).shape == (0, WORDS)


def test_the_last_layer_sees_these_tokens_alone_and_all_of_them_afterwards():
    model, (read, places) = language_model("bert"), some_tokens()
    few = seen_by_last_layer(model, lambda: logits_at(model, read, places))
    assert few == [(int(places.sum()), HIDDEN)]
    assert seen_by_last_layer(model, lambda: model(**read)) == [(3, 8, HIDDEN)]
    model.get_output_embeddings().bias.requires_grad_(requires_grad=True)
    every = seen_by_last_layer(model, lambda: logits_at(model, read, places))
    assert every == [(3, 8, HIDDEN)]
