"""Audio classification: the content of a sound file, one of the study's labels.

For the family of wav2vec 2.0 (HuBERT and others), which read the waveform itself.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from torch.nn import functional

from fedpact.common.errors import DataError
from fedpact.common.records import Column
from fedpact.common.study import Study
from fedpact.common.tasks.labelled import INVENTED, LabelledFiles, fields, missing

# How far apart the family's tokens begin, and how much of a sound the first of them needs.
_VALUES_PER_TOKEN = 320
_SHORTEST = 400
_INVENTED_RATE = 16_000


@dataclass(frozen=True, kw_only=True)
class AudioClassification(LabelledFiles):
    """The task `audio-classification` of a study."""

    max_length: int

    @property
    def reads(self) -> Literal["audio"]:
        """Sounds."""
        return "audio"

    def model_class(self) -> Any:
        """The transformers Auto class of the model."""
        from transformers import AutoModelForAudioClassification

        return AutoModelForAudioClassification

    def model_config(self) -> dict[str, Any]:
        """Labels; and nothing that leaves out layers or parts of a sound by chance."""
        return {
            **super().model_config(),
            "apply_spec_augment": False,
            "layerdrop": 0.0,
            "use_weighted_layer_sum": False,
        }

    def invented_files(self) -> Sequence[bytes]:
        """Four sounds of chance, of different lengths."""
        soundfile, rng = _soundfile(), np.random.default_rng(0)
        files = []
        for number in range(INVENTED):
            sink = io.BytesIO()
            wave = rng.uniform(-0.5, 0.5, _SHORTEST * (2 + number))
            soundfile.write(sink, wave, _INVENTED_RATE, format="WAV")
            files.append(sink.getvalue())
        return files

    def read(
        self, processor: Any, files: Iterator[tuple[int, bytes]], max_length: int
    ) -> tuple[str, Column, int]:
        """Waveforms of one channel, cut to `max_length` tokens, each normalised by itself."""
        longest = max_length * _VALUES_PER_TOKEN
        waves = []
        for number, content in files:
            wave = _wave(number, content, processor.sampling_rate)[:longest]
            made = processor(wave, sampling_rate=processor.sampling_rate, return_tensors="np")
            waves.append(made["input_values"][0])
        return "input_values", Column.of_rows(waves, np.float32), _VALUES_PER_TOKEN

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """What the model's head says of the mean of a sound's tokens, shape [n, labels], in fp32.

        As the library's head has it, but in this order: the projector is linear, so that its
        mean is that of the mean.
        """
        sounds, mask = batch["input_values"], batch["attention_mask"]
        whole: Any = model.get_base_model()  # type: ignore[operator]
        if getattr(whole.config, "feat_extract_norm", None) == "group":
            # The first layer normalises over the padding too, and how long that is would
            # depend on other records.
            room = self.max_length * _VALUES_PER_TOKEN - sounds.shape[1]
            sounds, mask = functional.pad(sounds, (0, room)), functional.pad(mask, (0, room))
        hidden = whole.base_model(sounds, attention_mask=mask).last_hidden_state
        is_there = whole._get_feature_vector_attention_mask(hidden.shape[1], mask)[..., None]  # noqa: SLF001
        mean = (hidden * is_there).sum(dim=1) / is_there.sum(dim=1)
        logits: Tensor = whole.classifier(whole.projector(mean)).float()
        return logits


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: it is there, its library is not
        raise missing("soundfile", "Sounds") from error
    return soundfile


def _wave(number: int, content: bytes, rate: int) -> npt.NDArray[np.float32]:
    """One sound, the mean of its channels, shape [t]."""
    soundfile = _soundfile()
    try:
        wave, found = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise DataError(
            f"Record {number}: its sound cannot be read.",
            advice="It must be the content of a sound file, such as WAV or FLAC.",
        ) from error
    if found != rate:
        raise DataError(
            f"Record {number}: its sound has {found} samples a second, the model hears {rate}.",
            advice=f"Resample all sounds first, such as with `sox in.wav -r {rate} out.wav`.",
        )
    if len(wave) < _SHORTEST:
        raise DataError(
            f"Record {number}: its sound has {len(wave)} samples, {_SHORTEST} are needed.",
            advice="Take it out of the data set, or fill it up with silence.",
        )
    mean: npt.NDArray[np.float32] = wave.mean(axis=1)
    if not np.isfinite(mean).all():
        raise DataError(f"Record {number}: its sound has values that are not finite.")
    return mean


def from_study(study: Study) -> AudioClassification:
    """The task as a study describes it."""
    return AudioClassification(
        file_column=study.task.audio_column,
        max_length=study.training.max_length,
        **fields(study),
    )
