"""Mutants: one-line mistakes in what keeps the promise, each of which a test must find.

`python tests/mutants.py` (`make mutants`) copies the tree, makes one mistake after the other in the
copy, runs one test file each, and prints a table. It ends with 1 if a mistake went unnoticed, or if
its line is no longer in the code.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_ROOMS = ("common", "client", "server", "simulations")
_COPIED = (*_ROOMS, "tests", "pyproject.toml")
_FOUND = 1  # pytest: tests ran, and some failed
_LIMIT_SECONDS = 300

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
        test: what must fail.
    """

    file: str
    old: str
    new: str
    test: str


MUTANTS = (
    # The trainer
    Mutant(
        f"{_CLIENT}/trainer.py",
        "expected_batch_size=how.batch_size,",
        "expected_batch_size=how.batch_size + 1,",
        "tests/client/test_trainer.py",
    ),
    Mutant(f"{_CLIENT}/trainer.py", "steps += 1", "steps += 0", "tests/client/test_trainer.py"),
    Mutant(
        f"{_CLIENT}/trainer.py",
        "return poisson_batches(records, how.mechanism.sample_rate, rng)",
        "return shuffled_batches(records, how.batch_size, rng)",
        "tests/client/test_trainer.py",
    ),
    Mutant(
        f"{_CLIENT}/trainer.py",
        "self._model.train()",
        "self._model.eval()",
        "tests/client/test_trainer.py",
    ),
    # Sampling
    Mutant(
        f"{_CLIENT}/batching.py",
        "yield np.flatnonzero(rng.random(records) < sample_rate)",
        "yield np.flatnonzero(rng.random(records) < 2 * sample_rate)",
        "tests/client/test_batching.py",
    ),
    Mutant(
        f"{_CLIENT}/batching.py",
        "yield np.sort(order[rank < most])",
        "yield np.sort(order[rank <= most])",
        "tests/client/test_persons.py",
    ),
    Mutant(
        f"{_CLIENT}/batching.py",
        "records = np.flatnonzero(drawn[persons])",
        "records = np.flatnonzero(rng.random(len(persons)) < sample_rate)",
        "tests/client/test_persons.py",
    ),
    # Clipping and noise
    Mutant(
        f"{_CLIENT}/dpsgd.py",
        "std = self.noise_multiplier * self.max_grad_norm",
        "std = self.noise_multiplier",
        "tests/client/test_dpsgd.py",
    ),
    Mutant(
        f"{_CLIENT}/dpsgd.py",
        "samples.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)",
        "pass",
        "tests/client/test_dpsgd.py",
    ),
    Mutant(
        f"{_CLIENT}/dpsgd.py",
        "samples = recorded if persons is None else _mean_by_person(recorded, persons)",
        "samples = recorded",
        "tests/client/test_persons.py",
    ),
    Mutant(
        f"{_CLIENT}/dpsgd.py",
        "self._step(skip=True)",
        "self._step(skip=False)",
        "tests/client/test_dpsgd.py",
    ),
    Mutant(
        f"{_CLIENT}/dpsgd.py",
        'torch.einsum("n...k->nk", outputs)',
        'torch.einsum("n...k->nk", outputs) / 2',
        "tests/client/test_dpsgd.py",
    ),
    Mutant(
        f"{_CLIENT}/dpsgd.py",
        "if not all(module.training for module in self._watched):",
        "if not self._watched:",
        "tests/client/test_dpsgd.py",
    ),
    # The self-test
    Mutant(
        f"{_CLIENT}/workbench.py",
        "self._tested.add(test)",
        "self._tested.add((run + run, *test[1:]))",
        "tests/client/test_selftest.py",
    ),
    Mutant(
        f"{_CLIENT}/selftest.py",
        "_check_sampling(how, how.mechanism)",
        "pass",
        "tests/client/test_selftest.py",
    ),
    # The ledger
    Mutant(
        f"{_CLIENT}/ledger.py",
        "if after > limit * _ROUNDING:",
        "if after > 2 * limit:",
        "tests/client/test_ledger.py",
    ),
    Mutant(
        f"{_CLIENT}/ledger.py",
        "if not 0 <= steps <= row.steps:",
        "if steps < 0:",
        "tests/client/test_ledger.py",
    ),
    Mutant(
        f"{_CLIENT}/ledger.py",
        "func.coalesce(ReservationRow.settled_steps, ReservationRow.steps)",
        "func.coalesce(ReservationRow.settled_steps, 0)",
        "tests/client/test_ledger.py",
    ),
    Mutant(
        f"{_CLIENT}/ledger.py",
        "where(private, ReservationRow.unit != study.unit)",
        'where(private, ReservationRow.unit == "")',
        "tests/client/test_persons.py",
    ),
    Mutant(
        f"{_COMMON}/study.py",
        "return self.expected_batch_size(name) / self.size(self.institution(name))",
        "return self.expected_batch_size(name) / self.institution(name).records",
        "tests/client/test_persons.py",
    ),
    # The gate
    Mutant(
        f"{_CLIENT}/gate.py",
        "if change.manifest != expected:",
        "if change.manifest is None:",
        "tests/client/test_gate.py",
    ),
    Mutant(
        f"{_CLIENT}/gate.py",
        "if not change.is_finite():",
        "if change.is_finite() is None:",
        "tests/client/test_gate.py",
    ),
    Mutant(
        f"{_CLIENT}/gate.py",
        "if (said := header.metrics) is not None and (said.kind, said.classes) != allowed:",
        "if (said := header.metrics) is not None and said.kind != metrics:",
        "tests/client/test_gate.py",
    ),
    Mutant(
        f"{_CLIENT}/gate.py",
        "reason = told or _KEPT_AT_HOME.get(refusal.code, refusal.reason)",
        "reason = refusal.reason",
        "tests/client/test_gate.py",
    ),
    # Private metrics
    Mutant(
        f"{_CLIENT}/private_metrics.py",
        "shares = 1 / np.bincount(owners)[owners]",
        "shares = np.ones(len(owners))",
        "tests/client/test_private_metrics.py",
    ),
    Mutant(
        f"{_CLIENT}/private_metrics.py",
        "1.5 if study.evaluation.per_class else 0.5",
        "0.5",
        "tests/client/test_private_metrics.py",
    ),
    # The coordinator's own noise
    Mutant(
        f"{_SERVER}/aggregation/clipped.py",
        "factor = 1.0 if norm <= bound else bound / norm",
        "factor = 1.0",
        "tests/server/test_clipped.py",
    ),
)


def hunt(mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, str, float]]:
    """Try each mutant.

    Yields:
        the mutant, what became of it (`found` is the only good end), and the seconds it took.
    """
    with tempfile.TemporaryDirectory(prefix="fedpact-mutants-") as scratch:
        tree = _copy(Path(scratch))
        for test in sorted({mutant.test for mutant in mutants}):
            if code := _pytest(tree, test):
                raise SystemExit(f"{test} ends with {code} without any mistake.")
        for mutant in mutants:
            started = time.monotonic()
            outcome = _try(tree, mutant)
            yield mutant, outcome, time.monotonic() - started


def _copy(folder: Path) -> Path:
    for name in _COPIED:
        if (ROOT / name).is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, folder / name, ignore=skipped)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def _try(tree: Path, mutant: Mutant) -> str:
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return f"its line stands there {text.count(mutant.old)} times"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code = _pytest(tree, mutant.test)
    except subprocess.TimeoutExpired:
        return "no end"
    finally:
        path.write_text(text, encoding="utf-8")
    return (
        "found" if code == _FOUND else "NOT FOUND" if code == 0 else f"pytest ended with {code}"
    )


def _pytest(tree: Path, test: str) -> int:
    """Run a test file of the copy against the copy; its exit code."""
    rooms = os.pathsep.join(str(tree / room) for room in _ROOMS)
    # Bytecode is taken by size and second: a mutant of the same length would not be seen.
    env = os.environ | {"PYTHONPATH": rooms, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
    ran = subprocess.run(
        command, cwd=tree, env=env, capture_output=True, timeout=_LIMIT_SECONDS, check=False
    )
    return ran.returncode


def main() -> int:
    """Try every mutant and print what became of each."""
    bad = 0
    for mutant, outcome, seconds in hunt(MUTANTS):
        bad += outcome != "found"
        print(
            f"{outcome:12} {seconds:5.1f} s  {Path(mutant.file).name}: {mutant.new}", flush=True
        )
    print(f"{len(MUTANTS) - bad} of {len(MUTANTS)} were found.")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
