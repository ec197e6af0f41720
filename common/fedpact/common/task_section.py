"""`[task]`: what is learned, from which columns; and what is known of each task without its code.

`KINDS` is what `fedpact study check` and the coordinator need to know of a task, so that neither
loads a model library for it. What a task does is in `fedpact.common.tasks`, a file for each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

# What other parties write is shown to people: no control characters, line separators or
# reversed writing in it.
PLAIN = r"^[^\p{Cc}\p{Zl}\p{Zp}\u202a-\u202e\u2066-\u2069]*$"
Word = Annotated[str, StringConstraints(max_length=500, pattern=PLAIN)]
MAX_LABELS = 10_000
TaskName = Literal[
    "text-classification",
    "multi-label-classification",
    "text-regression",
    "token-classification",
    "question-answering",
    "masked-language-modelling",
    "item-recommendation",
    "causal-language-modelling",
    "sequence-to-sequence",
    "image-classification",
    "audio-classification",
]
OUTSIDE: Final = "O"  # the tag of a word that is of no entity


class Section(BaseModel):
    """A table of the study file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Task(Section):
    """`[task]`: what is learned, from which columns."""

    name: TaskName = Field(
        default="text-classification", description="What kind of model is fine-tuned."
    )
    labels: tuple[Word, ...] = Field(
        default=(),
        max_length=MAX_LABELS,
        description="Every label there is, in the order of the model's outputs; for tasks with "
        "labels. For item-recommendation every item.",
    )
    text_column: Word = Field(
        default="text",
        description="The column that holds the text; for token-classification a list of words; "
        "for question-answering the question; for item-recommendation a list of items.",
    )
    text_pair_column: Word | None = Field(
        default=None,
        min_length=1,
        description="The column of a second text, which is read together with the first; for "
        "question-answering the context.",
    )
    max_windows: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Windows of `training.max_length` tokens in which a long text is read, at most; "
        "the rest is cut. Its prediction is the mean of theirs; it has one loss and one clipped "
        "gradient.",
    )
    window_overlap: int = Field(
        default=0,
        ge=0,
        le=8192,
        description="Tokens that a window has in common with the one before, at least; below half of "
        "`training.max_length`.",
    )
    label_column: Word = Field(
        default="label",
        description="The column that holds the label; for multi-label-classification all of a "
        "record's labels, with | between them; for text-regression the value; for "
        "token-classification the list of tags; for question-answering the answers.",
    )
    target_column: Word = Field(
        default="target",
        description="The column of the text that is to be written, for sequence-to-sequence.",
    )
    image_column: Word = Field(
        default="image",
        description="The column with the content of image files, for image-classification: bytes in "
        "Parquet, base64 in CSV and JSON lines.",
    )
    audio_column: Word = Field(
        default="audio",
        description="The column with the content of sound files, for audio-classification; as "
        "`image_column`.",
    )
    low: float | None = Field(
        default=None,
        description="The lowest value that can be, for text-regression: public, not counted.",
    )
    high: float | None = Field(default=None, description="The highest value that can be.")
    person_column: Word | None = Field(
        default=None,
        min_length=1,
        description="The column that says whose a record is, where `privacy.unit` is person. Its "
        "values never leave the site.",
    )

    @field_validator("labels")
    @classmethod
    def _none_or_some(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(labels) == 1:
            raise ValueError("with one label there is nothing to tell apart")
        return labels

    @model_validator(mode="after")
    def _has_what_its_kind_reads(self) -> Self:
        kind = KINDS[self.name]
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name not in (*_OF_ALL, *kind.reads) and value != field.default:
                raise ValueError(f"{self.name} does not read `{name}`")
            if name in kind.needs and value == field.default:
                raise ValueError(f"{self.name} needs `{name}`")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label stands in `labels` twice")
        if self.max_windows > 1 and self.text_pair_column is not None:
            raise ValueError("a pair cannot be read in windows: leave out `max_windows`")
        if self.max_windows == 1 and self.window_overlap:
            raise ValueError("`window_overlap` needs a `max_windows` above 1")
        kind.check(self)
        return self

    @property
    def kind(self) -> "Kind":
        """What is known of the task without its code."""
        return KINDS[self.name]


_OF_ALL = ("name", "person_column")


@dataclass(frozen=True)
class Kind:
    """What is known of a task without its code.

    Attributes:
        reads: the fields of `[task]` that it uses, besides those of every task.
        needs: those of them that have no default.
        head: the layers that are trained in full where `[adapter]` does not say.
        score: what the mean over the records of `Task.score` is called.
        in_words: what a model of it does, for a data steward.
        guess_loss: a record's loss where the model knows nothing: in private metrics losses
            are clipped at twice that.
        one_label: whether each record has exactly one of the labels.
        pooled: whether its head sees one vector of a whole text, which `[model] pooling` chooses.
        check: raises ValueError where fields do not go together.
        pipeline: what the Hugging Face hub calls such a task.
    """

    reads: tuple[str, ...]
    needs: tuple[str, ...]
    head: tuple[str, ...]
    score: str
    in_words: Callable[[Task], str]
    guess_loss: Callable[[Task], float]
    one_label: bool = False
    pooled: bool = False
    check: Callable[[Task], None] = lambda _: None
    pipeline: str = "text-classification"


# Among how many tokens a guess of one is made: what BERT can read.
_TOKENS = 512
# And among how many words: BERT's.
_WORDS = 30_522
_TEXT = ("text_column", "text_pair_column", "max_windows", "window_overlap")


# Of a token, in nats: a language model at work has 2 to 4. A guess among all tokens of a large
# vocabulary would have 11, and noise for a loss that never comes.
_TOKEN_LOSS = 5.0


def _separable(task: Task) -> None:
    if any("|" in label or label != label.strip() or not label for label in task.labels):
        raise ValueError("a label with | or white space at its ends cannot be told from two")


def _ordered(task: Task) -> None:
    if task.low is not None and task.high is not None and not task.low < task.high:
        raise ValueError("`low` must be below `high`")


def _begin_inside_outside(task: Task) -> None:
    if OUTSIDE not in task.labels:
        raise ValueError(f"`labels` need {OUTSIDE}, the tag of words outside of any entity")
    for label in task.labels:
        if label != OUTSIDE and (label[:2] not in ("B-", "I-") or not label[2:]):
            raise ValueError(f"the tag {label!r} is neither {OUTSIDE} nor B- or I- and a kind")
        if label[:2] == "I-" and f"B-{label[2:]}" not in task.labels:
            raise ValueError(f"the tag {label!r} needs B-{label[2:]}, with which it begins")


def _kinds_of(labels: tuple[str, ...]) -> str:
    return ", ".join(dict.fromkeys(label[2:] for label in labels if label != OUTSIDE))


KINDS: dict[str, Kind] = {
    "text-classification": Kind(
        reads=(*_TEXT, "labels", "label_column"),
        needs=("labels",),
        head=("classifier",),
        score="accuracy",
        in_words=lambda task: f"tell apart {', '.join(task.labels)}",
        guess_loss=lambda task: math.log(len(task.labels)),
        one_label=True,
        pooled=True,
    ),
    "multi-label-classification": Kind(
        reads=(*_TEXT, "labels", "label_column"),
        needs=("labels",),
        head=("classifier",),
        score="labels_right",
        in_words=lambda task: f"say which of {', '.join(task.labels)} hold",
        guess_loss=lambda _: math.log(2),
        check=_separable,
        pooled=True,
    ),
    "text-regression": Kind(
        reads=(*_TEXT, "label_column", "low", "high"),
        needs=("low", "high"),
        head=("classifier",),
        score="closeness",
        in_words=lambda task: f"estimate {task.label_column}, from {task.low} to {task.high}",
        guess_loss=lambda _: 0.25,
        check=_ordered,
        pooled=True,
    ),
    "token-classification": Kind(
        reads=("text_column", "labels", "label_column"),
        needs=("labels",),
        head=("classifier",),
        score="record_f1",
        in_words=lambda task: f"find in a text what is {_kinds_of(task.labels)}",
        guess_loss=lambda task: math.log(len(task.labels)),
        check=_begin_inside_outside,
        pipeline="token-classification",
    ),
    "question-answering": Kind(
        reads=("text_column", "text_pair_column", "label_column"),
        needs=("text_pair_column",),
        head=("qa_outputs",),
        score="f1",
        in_words=lambda task: (
            f"find in {task.text_pair_column} what {task.text_column} asks for"
        ),
        guess_loss=lambda _: math.log(_TOKENS),
        pipeline="question-answering",
    ),
    "masked-language-modelling": Kind(
        reads=("text_column",),
        needs=(),
        head=(),
        score="hidden_words_right",
        in_words=lambda task: f"know the language of {task.text_column}",
        guess_loss=lambda _: math.log(_WORDS),
        pipeline="fill-mask",
    ),
    "item-recommendation": Kind(
        reads=("text_column", "labels"),
        needs=("labels",),
        head=("classifier",),
        score="hit_rate_at_10",
        in_words=lambda task: (
            f"say which of {len(task.labels)} items follows on those of {task.text_column}"
        ),
        guess_loss=lambda task: math.log(len(task.labels)),
        pipeline="fill-mask",
    ),
    "causal-language-modelling": Kind(
        reads=("text_column",),
        needs=(),
        head=(),
        score="token_accuracy",
        in_words=lambda task: f"write on as {task.text_column} does",
        guess_loss=lambda _: _TOKEN_LOSS,
        pipeline="text-generation",
    ),
    "sequence-to-sequence": Kind(
        reads=("text_column", "target_column"),
        needs=(),
        head=(),
        score="token_accuracy",
        in_words=lambda task: f"write {task.target_column} of {task.text_column}",
        guess_loss=lambda _: _TOKEN_LOSS,
        pipeline="text2text-generation",
    ),
    "image-classification": Kind(
        reads=("image_column", "labels", "label_column"),
        needs=("labels",),
        head=("classifier",),
        score="accuracy",
        in_words=lambda task: f"tell images apart: {', '.join(task.labels)}",
        guess_loss=lambda task: math.log(len(task.labels)),
        pipeline="image-classification",
    ),
    "audio-classification": Kind(
        reads=("audio_column", "labels", "label_column"),
        needs=("labels",),
        head=("projector", "classifier"),
        score="accuracy",
        in_words=lambda task: f"tell sounds apart: {', '.join(task.labels)}",
        guess_loss=lambda task: math.log(len(task.labels)),
        pipeline="audio-classification",
    ),
}


def fill_head(document: Any) -> Any:
    """A study's document with the head of its task where `[adapter]` names none."""
    if not isinstance(document, dict):
        return document
    task, adapter = document.get("task"), document.get("adapter", {})
    name = task.get("name", "text-classification") if isinstance(task, dict) else None
    if name not in KINDS or not isinstance(adapter, dict):
        return document
    return {**document, "adapter": {"modules_to_save": KINDS[name].head, **adapter}}
