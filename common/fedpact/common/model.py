"""The LoRA adapter in a base model.

The base model is on its device before the adapter is made, so that no hook ever watches a
parameter that is later replaced.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fedpact.common import tasks
from fedpact.common.adapter import (
    ADAPTER,
    LORA_A,
    LORA_B,
    RESIDUAL_A,
    RESIDUAL_B,
    FloatArray,
    Manifest,
    Weights,
    first_values,
)
from fedpact.common.base_models import first_line, locate, require_digest
from fedpact.common.errors import DataError, ModelError, WireError
from fedpact.common.pooling import MeanPooled, Pooling, lora_targets
from fedpact.common.study import Study

Precision = Literal["fp32", "bf16"]
_OWN_WEIGHT = "_fedpact_own_weight"  # of a layer to whose weight a residual was added
_POSITIONS = ("position_embeddings", "wpe")  # as BERT and GPT-2 call them


def choose_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build(study: Study, device: torch.device) -> nn.Module:
    """The base model with the study's adapter in it, on `device`, in training mode.

    Returns:
        a `peft.PeftModel` of which only what the first round trains requires a gradient, with
        the adapter's first values for the study's seed.

    Raises:
        ModelError: the model is not at hand or not whole, or has no layer that
            `target_modules` names.
    """
    import peft
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoModel

    folder = locate(study.model)
    pooling, task = _pooling(study, folder), tasks.for_study(study)
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # a new head is what we ask for
    try:
        base, loading = (AutoModel if pooling.mean else task.model_class()).from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            attn_implementation=_attention(study, device),
            **task.model_config(),
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"The model in {folder} cannot be loaded: {first_line(error)}"
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    _require_whole(folder, loading["missing_keys"], study)
    if pooling.mean:
        base = MeanPooled(base, normalise=pooling.normalise)
    _require_length(base, study)
    base.to(device)
    if not study.training.dropout:
        for layer, name in dropouts(base):
            setattr(layer, name, 0.0)
    # The adapter names the model as the study does, not the folder that it came from here.
    warnings.filterwarnings("ignore", message=r"The PEFT config's .base_model_name_or_path")
    # GPT-2's layers hold their weights the other way round, which PEFT sees for itself.
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
    # PEFT asks transformers by an old name.
    warnings.filterwarnings("ignore", message=r".is_gradient_checkpointing. is deprecated")
    try:
        model: nn.Module = peft.get_peft_model(base, lora_config(study, pooling))
    except ValueError as error:
        raise ModelError(f"The adapter does not fit {study.model.base}: {error}") from error
    _require_layers(model, study)
    set_trained(model, study, 1)
    set_adapter(model, initial_weights(model, study.training.seed))
    return model.train()


def _pooling(study: Study, folder: Path) -> Pooling:
    """What the head sees: only where there is one for a whole text is it to be chosen."""
    return Pooling.of(folder, study.model.pooling) if study.task.kind.pooled else Pooling()


def dropouts(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where a model holds a share to drop out: the layer, and the attribute's name.

    Some families have a layer for it, some a number in another layer.
    """
    return [
        (layer, name)
        for layer in model.modules()
        for name, value in vars(layer).items()
        if isinstance(value, float)
        and (name == "p" if isinstance(layer, nn.Dropout) else "drop" in name)
    ]


def _require_whole(folder: Path, missing: Iterable[str], study: Study) -> None:
    """Whatever the weights lack, each site would draw for itself; the head comes with the adapter."""
    head = set(study.adapter.modules_to_save)
    if lacking := sorted(name for name in missing if not head & set(name.split("."))):
        raise ModelError(
            f"The weights in {folder} lack {len(lacking)} tensors, among them {lacking[0]}.",
            advice="Take a checkpoint of the same architecture that has them all.",
        )


def _require_length(base: nn.Module, study: Study) -> None:
    """A longer text would fail in the midst of training, and tell that there is one."""
    for name, module in base.named_modules():
        if name.endswith(_POSITIONS) and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from after its padding token's number.
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            longest = module.num_embeddings - offset
            if study.training.max_length > longest:
                raise ModelError(
                    f"The base model reads {longest} tokens, the study's max_length is "
                    f"{study.training.max_length}."
                )


def _require_layers(model: nn.Module, study: Study) -> None:
    """PEFT adapts those that there are, and says nothing of others."""
    adapted = {
        int(part)
        for name in _lora_layers(model)
        for part in name.split(".")
        if part.isdecimal()
    }
    for number in study.adapter.layers_to_transform or ():
        if number not in adapted:
            raise ModelError(f"The base model has no layer {number} that the adapter fits.")


def precision_on(device: torch.device, wanted: Precision | Literal["auto"]) -> Precision:
    """What `auto` means on a device: bf16 where it is in the hardware."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return "bf16" if fast else "fp32"


def _attention(study: Study, device: torch.device) -> str | None:
    """Which attention; None leaves it to the library.

    On a CPU the fused one's backward pass in bf16 is slower than all the rest of a step.
    """
    is_bf16 = precision_on(device, study.training.precision) == "bf16"
    return "eager" if device.type == "cpu" and is_bf16 else None


def lora_config(study: Study, pooling: Pooling) -> Any:
    """The study's adapter as PEFT describes it, for the model that the pooling makes."""
    import peft

    adapter, layers = study.adapter, study.adapter.layers_to_transform
    return peft.LoraConfig(
        task_type=None if pooling.mean else tasks.for_study(study).peft_type,
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=lora_targets(adapter.target_modules, pooling, layers),
        # PEFT wants them in the expression, where there is one.
        layers_to_transform=None if pooling.mean or layers is None else list(layers),
        modules_to_save=list(adapter.modules_to_save) or None,
        base_model_name_or_path=study.model.base,
        revision=study.model.revision,
    )


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by PEFT's names for them, sorted by name.

    The names are those of `peft.get_peft_model_state_dict`; the values are the live
    parameters, so that writing to them changes the model.
    """
    found = {}
    for name, parameter in model.named_parameters():
        if LORA_A in name or LORA_B in name:
            found[name.replace(".default.", ".")] = parameter
        elif ".modules_to_save.default." in name:
            found[name.replace(".modules_to_save.default.", ".")] = parameter
    return dict(sorted(found.items()))


def set_trained(model: nn.Module, study: Study, number: int) -> None:
    """Let only what a round (from 1) trains require a gradient."""
    for name, parameter in adapter_parameters(model).items():
        parameter.requires_grad = study.trains(name, number)


def get_adapter(model: nn.Module, *, trainable: bool = False) -> Weights:
    """The adapter's weights; with `trainable`, only what requires a gradient."""
    return Weights.from_tensors(
        {
            name: parameter.detach().float().cpu().numpy()
            for name, parameter in adapter_parameters(model).items()
            if parameter.requires_grad or not trainable
        }
    )


def require_fit(model: nn.Module, manifest: Manifest) -> None:
    """Check that an adapter, with or without a residual, fits the model's layers.

    Raises:
        ModelError: the names or shapes are not those of the model's adapter, or a residual is not
            a pair of factors for one of its layers, of a rank that the layer can have.
    """
    shapes = dict(zip(manifest.names, manifest.shapes, strict=True))
    residual = {name: shapes.pop(name) for name in manifest.residual}
    fits = shapes == {n: tuple(p.shape) for n, p in adapter_parameters(model).items()}
    for b, a in manifest.pairs():
        r_b, r_a = _residual_names(b)
        if r_b in residual or r_a in residual:
            d_out, d_in = shapes[b][0], shapes[a][1]
            left, right = residual.pop(r_b, ()), residual.pop(r_a, ())
            rank = right[0] if right else 0
            fits &= (left, right) == ((d_out, rank), (rank, d_in)) and rank <= min(d_out, d_in)
    if not fits or residual:
        misfit = "The adapter received does not fit the study's model."
        raise ModelError(misfit, told=misfit)


def _residual_names(b: str) -> tuple[str, str]:
    return b.replace(LORA_B, RESIDUAL_B), b.replace(LORA_B, RESIDUAL_A)


def set_adapter(model: nn.Module, weights: Weights) -> None:
    """Put weights into the model's adapter, and the residual into the layers' own weights.

    Without a residual, these are the base model's again, to the bit.

    Raises:
        ModelError: as `require_fit`.
    """
    require_fit(model, weights.manifest)
    tensors = weights.tensors()
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            parameter.copy_(torch.from_numpy(tensors[name]))
        for name, layer in _lora_layers(model).items():
            b, a = (tensors.get(f"{name}{part}weight") for part in (RESIDUAL_B, RESIDUAL_A))
            _add_to_base(layer, b, a)


def _lora_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that LoRA adapts, by name."""
    return {n: m for n, m in model.named_modules() if hasattr(m, "lora_A")}


def _add_to_base(layer: Any, b: FloatArray | None, a: FloatArray | None) -> None:
    """Make a layer's own weight the base model's plus what the residual adds."""
    weight = layer.base_layer.weight
    if b is not None and a is not None:
        if not hasattr(layer, _OWN_WEIGHT):
            setattr(layer, _OWN_WEIGHT, weight.detach().clone())
        added = torch.from_numpy(b).to(weight.device) @ torch.from_numpy(a).to(weight.device)
        weight.copy_(getattr(layer, _OWN_WEIGHT) + layer.scaling["default"] * added)
    elif hasattr(layer, _OWN_WEIGHT):
        weight.copy_(getattr(layer, _OWN_WEIGHT))


def set_rank(model: nn.Module, rank: int) -> None:
    """Give the model's adapter a rank, at the scale that it has; its values are then zero.

    An optimiser or hooks that were made before hold what is not there any more.
    """
    for layer in _lora_layers(model).values():
        _set_rank(layer, rank)


def set_ranks_of(model: nn.Module, manifest: Manifest) -> None:
    """The same, each layer with the rank that it has in an adapter, such as one that is released."""
    shapes = dict(zip(manifest.names, manifest.shapes, strict=True))
    for name, layer in _lora_layers(model).items():
        if shape := shapes.get(f"{name}{LORA_A}weight"):
            _set_rank(layer, shape[0])


def _set_rank(layer: Any, rank: int) -> None:
    down, up = layer.lora_A["default"], layer.lora_B["default"]
    if down.out_features == rank:
        return
    down.out_features = up.in_features = layer.r["default"] = rank
    shapes = (rank, down.in_features), (up.out_features, rank)
    for part, shape in zip((down, up), shapes, strict=True):
        values, asks = part.weight.new_zeros(shape), part.weight.requires_grad
        part.weight = nn.Parameter(values, requires_grad=asks)


def initial_weights(model: nn.Module, seed: int) -> Weights:
    """First values: A uniform as in `nn.Linear` (Hu et al. 2022), B and the head zero.

    A head at zero starts from an even guess, which under DP saves the steps that would go
    into unlearning a random one.
    """
    shapes = {n: tuple(p.shape) for n, p in adapter_parameters(model).items()}
    manifest = Manifest(tuple(shapes), tuple(shapes.values()))
    return first_values(manifest, np.random.default_rng(seed))


def first_weights(study: Study, start: Path | None, model: nn.Module) -> Weights:
    """What the first round begins with: an adapter trained before, or else the seed's values.

    Args:
        study: which.
        start: the folder that its `adapter.start` names.
        model: made by `build`.

    Raises:
        DataError: there is no adapter, it has another SHA-256 than the study says, or it is not one
            like the study's.
    """
    initial = initial_weights(model, study.training.seed)
    if start is None:
        return initial
    given = load_peft(start)
    require_digest(start / ADAPTER, study.adapter.start_sha256, f"The adapter in {start}")
    try:
        require_fit(model, given.manifest)
        return initial.overlaid(given)
    except (ModelError, WireError) as error:
        raise DataError(
            f"The adapter in {start} does not fit the study's.",
            advice="It must have the same base model, [adapter] and number of labels.",
        ) from error


def load_peft(folder: Path) -> Weights:
    """The values in a folder that `save_peft` wrote.

    Raises:
        DataError: there are none.
    """
    try:
        return Weights.load(folder / ADAPTER)
    except (OSError, WireError) as error:
        raise DataError(f"There is no adapter in {folder}.") from error


def save_peft(folder: Path, weights: Weights, study: Study) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` loads, the head included if given.

    What was added to the frozen weights is in it, as further components of A and B: the adapter
    goes with the base model as it was published, and has a higher rank than those of the rounds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = weights.tensors()
    config = lora_config(study, _pooling(study, locate(study.model)))
    for b, a in weights.manifest.pairs():
        r_b, r_a = _residual_names(b)
        if r_b not in tensors:
            continue
        tensors[b] = np.concatenate((tensors[b], tensors.pop(r_b)), axis=1)
        tensors[a] = np.concatenate((tensors[a], tensors.pop(r_a)), axis=0)
        layer, rank = b.partition(LORA_B)[0].removeprefix("base_model.model."), len(tensors[a])
        config.rank_pattern[layer] = rank
        config.alpha_pattern[layer] = study.adapter.lora_alpha / study.adapter.r * rank
    Weights.from_tensors(tensors).save(folder / ADAPTER)
    if all(".lora_" in name for name in tensors):
        config.modules_to_save = None  # sites kept their heads
    config.inference_mode = True
    config.save_pretrained(str(folder))
