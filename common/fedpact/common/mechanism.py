"""What a private computation did, apart from what it costs.

As in `dp_accounting.dp_event`: a mechanism is an immutable record of what happened; the
accountant (`fedpact.common.accounting`) says what it costs. Never change the meaning of one:
ledgers hold them for years.
"""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class SubsampledGaussian:
    """Steps of DP-SGD: Poisson sampling, clipping, Gaussian noise.

    Neighbouring data sets differ by adding or removing one record.

    Attributes:
        noise_multiplier: the noise's standard deviation over the clipping norm.
        sample_rate: q, the probability with which each record is in a batch.
        steps: how many times.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and 0 < self.sample_rate <= 1 and self.steps >= 0):
            raise ValueError(f"not a mechanism: {self}")


@dataclass(frozen=True, order=True)
class GaussianRelease:
    """Sums over all records, released with Gaussian noise; no sampling.

    Neighbouring data sets differ by adding or removing one record.

    Attributes:
        noise_multiplier: the noise's standard deviation over the L2 norm of what one record
            can contribute to all that is released at once.
        count: how many times.
    """

    noise_multiplier: float
    count: int

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and self.count >= 0):
            raise ValueError(f"not a mechanism: {self}")


Mechanism = SubsampledGaussian | GaussianRelease
