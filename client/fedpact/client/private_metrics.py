"""Loss and accuracy on a site's own records, released with noise.

Each record is a point: its score, which is in [0, 1] (1 or 0 where a prediction is right or wrong),
less ½; its loss, clipped to [0, c], as a share of c, less ½; and where the study asks for results per
class, two of 2 L cells: the score in that of the right predictions of its label, and 1 less the score
in that of the wrong ones. The points of all records are
added up or, where the promise is to persons, each person's mean point: a person has no more weight
than one record would have. So whoever is added or removed moves the sums by at most √½ (√1½ with
classes), whatever the adapter: also where a loss is not a number. Noise of the reserved multiple
of that is added to all sums at once.

The first two sums are divided by the number of records (or persons) that the declared size leads
to expect, which is public: how many there really are is not counted. Centred as they are, they
need half the noise that counts from 0 would, and a wrong size only scales their distance from ½.
"""

import math

import numpy as np

from fedpact.common import wire
from fedpact.common.evaluation import Scores
from fedpact.common.mechanism import GaussianRelease
from fedpact.common.randomness import Randomness
from fedpact.common.records import EncodedRecords
from fedpact.common.study import Study


def sensitivity(study: Study) -> float:
    """L2 norm of what one record (or person) adds to all sums together, at most."""
    return math.sqrt(1.5 if study.evaluation.per_class else 0.5)


def release(
    scores: Scores,
    records: EncodedRecords,
    study: Study,
    institution: str,
    how: GaussianRelease,
    rng: Randomness,
) -> wire.SiteMetrics:
    """Add noise to what was measured.

    Args:
        scores: of each record that was set aside; there may be none.
        records: these records, for their labels and whose they are.
        study: says where losses are clipped, and whether there are results per class.
        institution: whose declared size says how many records (or persons) are expected.
        how: what the ledger reserved.
        rng: for the noise.

    Returns:
        unbiased where the size is right; the mean score, as `accuracy`, may be below 0 or above 1, a
        count below 0.
    """
    clip, expected = study.loss_clip, study.expected_validation(institution)
    clipped = np.nan_to_num(scores.losses.astype(np.float64), nan=clip, posinf=clip)
    losses = np.clip(clipped, 0.0, clip) / clip
    owners, classes = records.owners, study.classes_measured
    shares = 1 / np.bincount(owners)[owners]
    # A task's score is in [0, 1]; the promise must not hang on that.
    bounded = np.clip(np.nan_to_num(scores.scores.astype(np.float64)), 0.0, 1.0)
    sums = np.zeros(2 + 2 * classes)
    sums[:2] = shares @ (bounded - 0.5), shares @ (losses - 0.5)
    if classes:
        label = records.labels.astype(np.int64)
        np.add.at(sums, 2 + label, shares * bounded)
        np.add.at(sums, 2 + classes + label, shares * (1 - bounded))
    spread = how.noise_multiplier * sensitivity(study)
    sums += spread * rng.standard_normal(len(sums))
    accuracy, loss = 0.5 + sums[:2] / expected
    right, wrong = sums[2:].reshape(2, classes).tolist()
    return wire.SiteMetrics(
        kind="private",
        loss=clip * float(loss),
        accuracy=float(accuracy),
        loss_noise=clip * spread / expected,
        accuracy_noise=spread / expected,
        right=right,
        wrong=wrong,
        count_noise=spread if classes else 0.0,
    )
