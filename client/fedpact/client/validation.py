"""A site's held-out records; what is held out follows from the record itself.

Whether a record is held out follows from its own tokens alone, so it is the same in every
round and run, a record is never trained on and measured on, equal texts fall on one side,
and adding or removing a record moves no other: the promise stays one about one record. Where
the promise is to persons, it follows from whose the record is: a person is on one side whole.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from fedpact.common.records import EncodedRecords
from fedpact.common.study import Study

_SALT = b"fedpact split"


@dataclass(frozen=True, eq=False)
class Split:
    """Records to train on and records to measure on."""

    training: EncodedRecords
    validation: EncodedRecords


def split(study: Study, records: EncodedRecords) -> Split:
    """Set records aside where the study asks for site metrics; otherwise none."""
    if study.evaluation.site_metrics == "none":
        return Split(records, records.select(np.arange(0)))
    return hold_out(records, study.evaluation.validation_fraction)


def hold_out(records: EncodedRecords, fraction: float, salt: bytes = _SALT) -> Split:
    """Hold out about this fraction of the records (or persons).

    Args:
        records: of the site.
        fraction: in [0, 1).
        salt: with another, which are held out has nothing to do with what is set aside for
            site metrics.
    """
    draws = np.array([_draw(records, index, salt) for index in range(len(records))])
    aside = draws < fraction
    return Split(records.select(np.flatnonzero(~aside)), records.select(np.flatnonzero(aside)))


def _draw(records: EncodedRecords, index: int, salt: bytes) -> float:
    """A number in [0, 1) that follows from a record's person, or else from what is read of it."""
    if records.persons is not None:
        content = records.persons[index].astype("<i8").tobytes()
    else:
        values = records.main.of(index)
        content = values.astype(values.dtype.newbyteorder("<")).tobytes()
    digest = hashlib.blake2b(content, digest_size=8, salt=salt).digest()
    return int.from_bytes(digest, "big") / 2**64
