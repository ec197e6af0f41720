"""What a study runs at an institution, from public numbers alone: whoever has the study knows it."""

from dataclasses import replace

from fedpact.common import accounting
from fedpact.common.mechanism import GaussianRelease, SubsampledGaussian
from fedpact.common.study import Study


def plan(study: Study, institution: str) -> SubsampledGaussian | None:
    """What one round runs at an institution: a function of public numbers alone.

    The noise is what keeps the study's whole number of steps within its ε, together with the
    private metrics of the whole run.

    Returns:
        training's mechanism of one round; None for a study without DP.

    Raises:
        StudyError: the institution does not take part.
        BudgetError: no noise would keep the promise.
    """
    sample_rate = study.sample_rate(institution)
    if not study.is_private:
        return None
    sigma = accounting.noise_multiplier(
        study.privacy.target_epsilon,
        study.privacy.target_delta,
        sample_rate,
        study.total_steps,
        whole_run(study, plan_metrics(study)),
    )
    return SubsampledGaussian(sigma, sample_rate, study.training.local_steps)


def plan_metrics(study: Study) -> GaussianRelease | None:
    """The release of private metrics in one round: a function of public numbers alone.

    Returns:
        the mechanism of one round; None where the study asks for no private metrics.

    Raises:
        BudgetError: no noise would keep within the metrics' share of ε.
    """
    if study.evaluation.site_metrics != "private":
        return None
    share = study.evaluation.metrics_epsilon_share * study.privacy.target_epsilon
    noise = accounting.release_noise(share, study.privacy.target_delta, study.training.rounds)
    return GaussianRelease(noise, 1)


def whole_run(study: Study, release: GaussianRelease | None) -> GaussianRelease | None:
    """What a release in each round is over all rounds."""
    return release and replace(release, count=study.training.rounds)
