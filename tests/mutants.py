"""Mutants: one-line mistakes in what keeps the promise, each of which a test must find.

`python tests/mutants.py` (`make mutants`) makes each mistake in a process of its own, runs there the
few tests that should find it, and prints a table. It ends with 1 if a mistake went unnoticed, or if
its line is no longer in the code.

No file is changed. Loading PyTorch takes longer than finding a mistake, so one process loads the
libraries and is forked for each mutant; in the fork the mutated file is compiled from changed text
when it is imported. (A test that starts another process tests the code as it is, and finds nothing.)
"""

import importlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).resolve().parent.parent
_ROOMS = ("common", "client", "server", "simulations")
_LIMIT_SECONDS = 300
_AT_ONCE = 2
# What tests load and no mutant is in.
_LIBRARIES = (
    "torch",
    "transformers.models.bert.modeling_bert",
    "transformers.models.auto.modeling_auto",
    "peft",
    "opacus.grad_sample",
    "opacus.optimizers",
    "dp_accounting.pld.privacy_loss_distribution",
    "dp_accounting.pld.pld_pmf",
    "alembic.command",
    "sqlalchemy.orm",
    "datasets",
    "hypothesis",
    "tokenizers",
    "pytest",
)

_CLIENT, _SERVER, _COMMON = (
    f"{room}/fedpact/{room}" for room in ("client", "server", "common")
)


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        file: where it is made.
        old: what stands there, once.
        new: what stands there instead.
        test: what must fail, as pytest names it; several with spaces between.
    """

    file: str
    old: str
    new: str
    test: str

    @property
    def tests(self) -> list[str]:
        """Each of them."""
        return self.test.split()


MUTANTS = (
    # The trainer
    Mutant(
        f"{_CLIENT}/trainer.py",
        "expected_batch_size=how.batch_size,",
        "expected_batch_size=how.batch_size + 1,",
        "tests/client/test_trainer.py::test_the_private_way_is_the_same_where_nothing_is_clipped_and_noise_is_tiny",
    ),
    Mutant(
        f"{_CLIENT}/trainer.py",
        "steps += 1",
        "steps += 0",
        "tests/client/test_trainer.py::test_training_is_plain_training_where_nothing_is_private",
    ),
    Mutant(
        f"{_CLIENT}/trainer.py",
        "return poisson_batches(records, how.mechanism.sample_rate, rng)",
        "return shuffled_batches(records, how.batch_size, rng)",
        "tests/client/test_trainer.py::test_private_batches_are_poisson",
    ),
    Mutant(
        f"{_CLIENT}/trainer.py",
        "self._model.train()",
        "self._model.eval()",
        "tests/client/test_trainer.py::test_the_private_way_is_the_same_where_nothing_is_clipped_and_noise_is_tiny",
    ),
    # Sampling
    Mutant(
        f"{_CLIENT}/batching.py",
        "yield np.flatnonzero(rng.random(records) < sample_rate)",
        "yield np.flatnonzero(rng.random(records) < 2 * sample_rate)",
        "tests/client/test_batching.py::test_poisson_sizes_vary_as_independent_draws_do",
    ),
    Mutant(
        f"{_CLIENT}/batching.py",
        "yield np.sort(order[rank < most])",
        "yield np.sort(order[rank <= most])",
        "tests/client/test_persons.py::test_a_person_is_in_a_batch_with_as_many_records_as_agreed",
    ),
    Mutant(
        f"{_CLIENT}/batching.py",
        "records = np.flatnonzero(drawn[persons])",
        "records = np.flatnonzero(rng.random(len(persons)) < sample_rate)",
        "tests/client/test_persons.py::test_a_person_is_in_a_batch_with_as_many_records_as_agreed",
    ),
    # Clipping and noise
    Mutant(
        f"{_CLIENT}/dpsgd.py",
        "std = self.noise_multiplier * self.max_grad_norm",
        "std = self.noise_multiplier",
        "tests/client/test_dpsgd.py::test_noise_has_the_agreed_size_once_whatever_came",
    ),
    Mutant(
        f"{_CLIENT}/dpsgd.py",
        "samples.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)",
        "pass",
        "tests/client/test_dpsgd.py::test_a_record_that_overflows_changes_the_sum_by_no_more_than_any_other",
    ),
    Mutant(
        f"{_CLIENT}/dpsgd.py",
        "samples = recorded if persons is None else _mean_by_person(recorded, persons)",
        "samples = recorded",
        "tests/client/test_persons.py::test_a_person_with_fifty_records_moves_the_sum_by_the_clipping_norm_at_most",
    ),
    Mutant(
        f"{_CLIENT}/dpsgd.py",
        "self._step(skip=True)",
        "self._step(skip=False)",
        "tests/client/test_dpsgd.py::test_gradients_are_of_each_record_where_nothing_is_clipped",
    ),
    Mutant(
        f"{_CLIENT}/dpsgd.py",
        'torch.einsum("n...k->nk", outputs)',
        'torch.einsum("n...k->nk", outputs) / 2',
        "tests/client/test_dpsgd.py::test_each_record_is_clipped_over_all_parameters_together",
    ),
    Mutant(
        f"{_CLIENT}/dpsgd.py",
        "if not all(module.training for module in self._watched):",
        "if not self._watched:",
        "tests/client/test_dpsgd.py::test_evaluation_mode_is_refused",
    ),
    # The self-test
    Mutant(
        f"{_CLIENT}/workbench.py",
        "self._tested.add(test)",
        "self._tested.add((run + run, *test[1:]))",
        "tests/client/test_selftest.py::test_it_is_done_once_in_a_run",
    ),
    Mutant(
        f"{_CLIENT}/selftest.py",
        "_check_sampling(how, how.mechanism)",
        "pass",
        "tests/client/test_selftest.py::test_a_fault_is_a_refusal_that_costs_nothing",
    ),
    # The ledger
    Mutant(
        f"{_CLIENT}/ledger.py",
        "if after > limit * _ROUNDING:",
        "if after > 2 * limit:",
        "tests/client/test_ledger.py::test_the_same_people_under_another_name_and_content_share_the_budget",
    ),
    Mutant(
        f"{_CLIENT}/ledger.py",
        "if not 0 <= steps <= row.steps:",
        "if steps < 0:",
        "tests/client/test_ledger.py::test_no_more_steps_are_settled_than_were_reserved",
    ),
    Mutant(
        f"{_CLIENT}/ledger.py",
        "func.coalesce(ReservationRow.settled_steps, ReservationRow.steps)",
        "func.coalesce(ReservationRow.settled_steps, 0)",
        "tests/client/test_ledger.py::test_a_reservation_counts_in_full_until_it_is_settled",
    ),
    Mutant(
        f"{_CLIENT}/ledger.py",
        "where(private, ReservationRow.unit != study.unit)",
        'where(private, ReservationRow.unit == "")',
        "tests/client/test_persons.py::test_a_ledger_of_persons_takes_no_records_and_the_other_way",
    ),
    Mutant(
        f"{_COMMON}/study.py",
        "return self.expected_batch_size(name) / self.size(self.institution(name))",
        "return self.expected_batch_size(name) / self.institution(name).records",
        "tests/client/test_persons.py::test_a_site_trains_and_counts_by_person",
    ),
    # The gate
    Mutant(
        f"{_CLIENT}/gate.py",
        "if change.manifest != allowed.tensors:",
        "if change.manifest is None:",
        "tests/client/test_gate.py::test_what_is_not_right_stays",
    ),
    Mutant(
        f"{_CLIENT}/gate.py",
        "if not change.is_finite():",
        "if change.is_finite() is None:",
        "tests/client/test_gate.py::test_what_is_not_right_stays",
    ),
    Mutant(
        f"{_CLIENT}/gate.py",
        "if (said := header.metrics) is not None and (said.kind, said.classes) != agreed:",
        "if (said := header.metrics) is not None and said.kind != allowed.metrics:",
        "tests/client/test_gate.py::test_what_is_not_right_stays",
    ),
    Mutant(
        f"{_CLIENT}/gate.py",
        "reason = told or _KEPT_AT_HOME.get(refusal.code, refusal.reason)",
        "reason = refusal.reason",
        "tests/client/test_gate.py::test_a_refusal_that_has_another_reason_for_outside_leaves_with_that",
    ),
    Mutant(
        f"{_CLIENT}/gate.py",
        "if change.norm > allowed.norm:",
        "if change.norm > math.inf:",
        "tests/client/test_gate.py::test_what_is_not_right_stays",
    ),
    Mutant(
        f"{_CLIENT}/gate.py",
        'if not wanted <= {str(one["kind"]) for one in of_study}:',
        "if not of_study:",
        "tests/client/test_gate.py::test_what_the_ledger_does_not_hold_stays",
    ),
    Mutant(
        f"{_CLIENT}/ledger.py",
        "ReservationRow.settled_steps.is_not(None),",
        "ReservationRow.steps > 0,",
        "tests/client/test_gate.py::test_what_the_ledger_does_not_hold_stays",
    ),
    Mutant(
        f"{_CLIENT}/gate.py",
        "if any(other != sha256 for other in earlier):",
        "if any(other == sha256 for other in earlier):",
        "tests/client/test_gate.py::test_no_second_update_leaves_for_a_round",
    ),
    Mutant(
        f"{_CLIENT}/norm_bound.py",
        "return math.sqrt(size) * adam_ratio(step)",
        "return adam_ratio(step)",
        "tests/client/test_norm_bound.py::test_adamw_goes_no_further_whatever_the_gradients_are",
    ),
    Mutant(
        f"{_CLIENT}/norm_bound.py",
        "return how.max_grad_norm * (1 / how.mechanism.sample_rate + noise)",
        "return how.max_grad_norm * (1.0 + noise)",
        "tests/client/test_norm_bound.py::"
        "test_sgd_goes_no_further_and_almost_as_far_when_all_records_pull_one_way",
    ),
    Mutant(
        f"{_CLIENT}/norm_bound.py",
        "moved = abs(1 - decay) * moved + decay * start",
        "moved = abs(1 - decay) * moved",
        "tests/client/test_norm_bound.py::"
        "test_sgd_goes_no_further_and_almost_as_far_when_all_records_pull_one_way",
    ),
    # A person's word
    Mutant(
        f"{_CLIENT}/site.py",
        'if policy.release == "automatic":',
        "if policy.release:",
        "tests/client/test_held.py::"
        "test_without_a_word_nothing_leaves_and_with_it_exactly_what_was_shown",
    ),
    Mutant(
        f"{_CLIENT}/gate.py",
        'if held.word != "release":',
        'if held.word == "withhold":',
        "tests/client/test_gate.py::test_without_a_word_nothing_that_is_held_leaves",
    ),
    Mutant(
        f"{_CLIENT}/held.py",
        "if hashlib.sha256(data).hexdigest() == held.sha256:",
        "if data:",
        "tests/client/test_held.py::test_bytes_that_were_changed_while_they_waited_do_not_leave",
    ),
    Mutant(
        f"{_CLIENT}/site.py",
        "self.agreed(study)\n        if policy.release",
        "if policy.release",
        "tests/client/test_held.py::test_who_withdraws_while_the_site_trains_sees_nothing_leave",
    ),
    # Seeds
    Mutant(
        f"{_CLIENT}/policy_check.py",
        "if seeded and not policy.allow_insecure_seed:",
        "if seeded and policy.allow_insecure_seed:",
        "tests/client/test_seed.py::test_by_default_a_site_with_a_seed_does_not_train",
    ),
    # Private metrics
    Mutant(
        f"{_CLIENT}/private_metrics.py",
        "shares = 1 / np.bincount(owners)[owners]",
        "shares = np.ones(len(owners))",
        "tests/client/test_private_metrics.py::test_a_person_counts_once_whatever_they_wrote",
    ),
    Mutant(
        f"{_CLIENT}/private_metrics.py",
        "1.5 if study.evaluation.per_class else 0.5",
        "0.5",
        "tests/client/test_private_metrics.py::"
        "test_one_unit_with_all_its_records_moves_all_sums_together_by_no_more",
    ),
    # The coordinator's own noise
    Mutant(
        f"{_SERVER}/aggregation/clipped.py",
        "factor = 1.0 if norm <= bound else bound / norm",
        "factor = 1.0",
        "tests/server/test_clipped.py::test_one_institution_moves_the_clipped_mean_by_its_share_at_most",
    ),
)


@dataclass(frozen=True)
class _Trial:
    """A fork in which tests run.

    Attributes:
        process: it; it ends with pytest's exit code.
        said: the file to which its output goes.
        began: when.
    """

    process: ForkProcess
    said: Path
    began: float


def hunt(mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, str, float]]:
    """Try each mutant, some at once.

    Yields:
        the mutant, what became of it (it begins with `found` in the only good end), and the
        seconds it took.
    """
    for name in _LIBRARIES:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="fedpact-mutants-") as scratch:
        every = sorted({test for mutant in mutants for test in mutant.tests})
        whole = _start(Path(scratch) / "whole", every)
        whole.process.join()
        if code := whole.process.exitcode:
            raise SystemExit(
                f"The tests end with {code} without any mistake:\n{whole.said.read_text()}"
            )
        waiting, running = list(enumerate(mutants)), dict[int, tuple[Mutant, _Trial]]()
        while waiting or running:
            while waiting and len(running) < _AT_ONCE:
                number, mutant = waiting.pop(0)
                text = (ROOT / mutant.file).read_text(encoding="utf-8")
                if text.count(mutant.old) != 1:
                    yield mutant, f"its line stands there {text.count(mutant.old)} times", 0.0
                    continue
                trial = _start(Path(scratch) / str(number), mutant.tests, mutant)
                running[trial.process.sentinel] = mutant, trial
            for ended in wait(list(running)):
                mutant, trial = running.pop(int(ended))
                trial.process.join()
                yield mutant, _outcome(trial), time.monotonic() - trial.began


def _start(said: Path, tests: Sequence[str], mutant: Mutant | None = None) -> _Trial:
    process = get_context("fork").Process(target=_run, args=(said, tests, mutant))
    process.start()
    return _Trial(process, said, time.monotonic())


def _run(said: Path, tests: Sequence[str], mutant: Mutant | None) -> None:
    """In the fork: make the mistake, run the tests, end with pytest's exit code."""
    signal.alarm(_LIMIT_SECONDS)
    with said.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT / room) for room in _ROOMS]
    if mutant is not None:
        _plant(mutant)
    import pytest

    options = ("-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=short")
    sys.exit(int(pytest.main([*options, *tests])))


def _plant(mutant: Mutant) -> None:
    """Compile the mutant's file from changed text when it is imported; bytecode is not read."""
    path = ROOT / mutant.file
    changed = path.read_text(encoding="utf-8").replace(mutant.old, mutant.new)
    as_it_is = SourceFileLoader.get_code

    def get_code(loader: SourceFileLoader, name: str) -> CodeType | None:
        if Path(loader.path) == path:
            return compile(changed, str(path), "exec")
        return as_it_is(loader, name)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def _outcome(trial: _Trial) -> str:
    match trial.process.exitcode:
        case 1:
            said = trial.said.read_text(errors="replace")
            first = re.search(r"^FAILED \S+?::(\w+)", said, re.MULTILINE)
            return f"found by {first[1]}" if first else "the tests do not load"
        case 0:
            return "NOT FOUND"
        case code if code == -signal.SIGALRM:
            return "no end"
        case code:
            return f"pytest ended with {code}"


def main() -> int:
    """Try every mutant and print what became of each."""
    bad = 0
    for mutant, outcome, seconds in hunt(MUTANTS):
        bad += not outcome.startswith("found")
        print(
            f"{seconds:5.1f} s  {Path(mutant.file).name}: {mutant.new.splitlines()[0]}: {outcome}",
            flush=True,
        )
    print(f"{len(MUTANTS) - bad} of {len(MUTANTS)} were found.")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
