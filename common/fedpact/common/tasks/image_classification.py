"""Image classification: the content of an image file, one of the study's labels."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from fedpact.common.errors import DataError
from fedpact.common.records import Column, inputs
from fedpact.common.study import Study
from fedpact.common.tasks.labelled import INVENTED, LabelledFiles, fields, missing

# Of a patch of 16 by 16 pixels in three colours, of which a vision transformer makes one token.
_VALUES_PER_TOKEN = 768


@dataclass(frozen=True, kw_only=True)
class ImageClassification(LabelledFiles):
    """The task `image-classification` of a study."""

    @property
    def reads(self) -> Literal["image"]:
        """Images."""
        return "image"

    def model_class(self) -> Any:
        """The transformers Auto class of the model."""
        from transformers import AutoModelForImageClassification

        return AutoModelForImageClassification

    def invented_files(self) -> Sequence[bytes]:
        """Four images of chance, of different sizes."""
        image, rng = _pillow(), np.random.default_rng(0)
        files = []
        for number in range(INVENTED):
            sink = io.BytesIO()
            pixels = rng.integers(0, 256, (24 + 8 * number, 32, 3), dtype=np.uint8)
            image.fromarray(pixels).save(sink, "PNG")
            files.append(sink.getvalue())
        return files

    def read(
        self, processor: Any, files: Iterator[tuple[int, bytes]], max_length: int
    ) -> tuple[str, Column, int]:
        """Pixels as the model's processor makes them, of one size for all.

        In float16, which tells the 256 steps of a colour apart, and takes half the room.
        """
        del max_length  # all images have as many tokens
        images = [_pixels(processor, number, content) for number, content in files]
        values = np.stack(images) if images else np.empty((0, 3, 1, 1), np.float16)
        return "pixel_values", Column(values), _VALUES_PER_TOKEN

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """What the model says, shape [n, labels], in fp32."""
        logits: Tensor = model(**inputs(batch)).logits.float()
        return logits


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise missing("Pillow", "Images") from error
    return Image


def _pixels(processor: Any, number: int, content: bytes) -> np.ndarray[Any, Any]:
    """One image's pixels, float16, shape [3, height, width]."""
    image = _pillow()
    try:
        picture = image.open(io.BytesIO(content)).convert("RGB")
    # Pillow has an error of its own only for some of what can be wrong with a file.
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise DataError(
            f"Record {number}: its image cannot be read.",
            advice="It must be the content of an image file, such as PNG or JPEG.",
        ) from error
    made: np.ndarray[Any, Any] = processor(picture, return_tensors="np")["pixel_values"][0]
    return made.astype(np.float16)


def from_study(study: Study) -> ImageClassification:
    """The task as a study describes it."""
    return ImageClassification(file_column=study.task.image_column, **fields(study))
