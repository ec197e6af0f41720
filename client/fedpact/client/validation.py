"""A site's validation split: set aside only where a study asks for metrics.

Which records are set aside follows from the data set's content and the record's place in
it, so it is the same in every round and run: a record is never trained on and measured on.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from fedpact.client.datasets import Dataset
from fedpact.common.records import EncodedRecords
from fedpact.common.study import Study


@dataclass(frozen=True, eq=False)
class Split:
    """Records to train on and records to measure on."""

    training: EncodedRecords
    validation: EncodedRecords


def split(study: Study, dataset: Dataset, records: EncodedRecords) -> Split:
    """Set records aside where the study asks for site metrics; otherwise none."""
    aside = np.zeros(len(records), dtype=bool)
    if study.evaluation.site_metrics:
        seed = int.from_bytes(hashlib.sha256(dataset.sha256.encode()).digest()[:8], "little")
        draws = np.random.default_rng(seed).random(len(records))
        aside = draws < study.evaluation.validation_fraction
    return Split(
        records.select(np.flatnonzero(~aside)) if aside.any() else records,
        records.select(np.flatnonzero(aside)),
    )
