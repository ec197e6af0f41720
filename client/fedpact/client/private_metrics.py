"""Loss and accuracy on a site's own records, released with noise.

Each record adds one point to a sum: its score, which is in [0, 1] (1 or 0 where a prediction is
right or wrong), less ½; and its loss, clipped to [0, c], as a share of c, less ½. So a record that is added or removed
moves the sum by at most √½, whatever the adapter: also where a loss is not a number. Noise of
the reserved multiple of √½ is added to both sums at once. They are then divided by the number
of records that the declared size leads to expect, which is public: how many there really are
is neither counted nor released. Centred as they are, the sums need half the noise that counts
from 0 would, and a wrong size only scales their distance from ½.
"""

import math
from typing import Final

import numpy as np

from fedpact.common import wire
from fedpact.common.evaluation import Scores
from fedpact.common.mechanism import GaussianRelease
from fedpact.common.randomness import Randomness
from fedpact.common.study import Study

# L2 norm of what one record adds.
SENSITIVITY: Final = math.sqrt(0.5)


def release(
    scores: Scores, study: Study, institution: str, how: GaussianRelease, rng: Randomness
) -> wire.SiteMetrics:
    """Add noise to what was measured.

    Args:
        scores: of each record that was set aside; there may be none.
        study: says where losses are clipped.
        institution: whose declared size says how many records are expected.
        how: what the ledger reserved.
        rng: for the noise.

    Returns:
        unbiased where the size is right; the mean score, as `accuracy`, may be below 0 or above 1.
    """
    clip, expected = study.loss_clip, study.expected_validation(institution)
    clipped = np.nan_to_num(scores.losses.astype(np.float64), nan=clip, posinf=clip)
    # A task's score is in [0, 1]; the promise must not hang on that.
    bounded = np.clip(np.nan_to_num(scores.scores.astype(np.float64)), 0.0, 1.0)
    sums = np.array(
        [
            (bounded - 0.5).sum(),
            (np.clip(clipped, 0.0, clip) / clip - 0.5).sum(),
        ]
    )
    spread = how.noise_multiplier * SENSITIVITY
    accuracy, loss = 0.5 + (sums + spread * rng.standard_normal(2)) / expected
    return wire.SiteMetrics(
        kind="private",
        loss=clip * float(loss),
        accuracy=float(accuracy),
        loss_noise=clip * spread / expected,
        accuracy_noise=spread / expected,
    )
