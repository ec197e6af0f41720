"""Was it worth joining? A site's answer, measured here on its own records; none of it leaves.

Alone is the same study with nobody else: the same rounds, steps and optimisers, the coordinator's
too, from the same first values, at the site's own rank, on its own training records. Nothing of it
leaves, so it needs no noise and costs no budget; with noise it says what DP costs the site by itself.
"""

from dataclasses import dataclass
from pathlib import Path

from fedpact.client.interpolation import interpolate
from fedpact.client.personal import Kept, whole
from fedpact.client.workbench import Workbench
from fedpact.common import model as models
from fedpact.common import server_optimizer, tabular, tasks
from fedpact.common.adapter import Weights
from fedpact.common.errors import StudyError, UsageError
from fedpact.common.evaluation import Scores
from fedpact.common.planned import plan
from fedpact.common.records import EncodedRecords
from fedpact.common.study import Study
from fedpact.common.worth import Comparison, SiteWorth


@dataclass(frozen=True, eq=False)
class Personal:
    """A whole adapter of a site's own.

    Attributes:
        weights: the adapter.
        share_of_shared: how much of it was trained on from the shared one, where `interpolate`
            has chosen that.
    """

    weights: Weights
    share_of_shared: float | None = None


@dataclass(frozen=True, eq=False)
class Bench:
    """Where one site's adapters are made and measured again.

    Attributes:
        study: whose run is looked at; its personal adapter may be made by another method.
        institution: the site's name in it.
        workbench: the resident model.
        training: the records that the site trained on.
        start: what alone begins with; None: the seed's first values.
    """

    study: Study
    institution: str
    workbench: Workbench
    training: EncodedRecords
    start: Weights | None = None

    def alone(self, *, private: bool) -> Weights:
        """The adapter that the site would have had by itself.

        Args:
            private: with the noise of the study; it costs no budget, as nothing of it leaves.

        Raises:
            StudyError: the study has no noise to train with.
            FedpactError: as `Trainer.train`.
        """
        study, bench = self.study, self.workbench
        mechanism = plan(study, self.institution) if private else None
        if private and mechanism is None:
            raise StudyError(f"The study {study.study.name} has no noise to train alone with.")
        first = bench.model(study).first if self.start is None else self.start
        weights = first.of_rank(study.rank(self.institution))
        state: Weights | None = None
        for number in range(1, study.training.rounds + 1):
            bench.fit(study, self.institution, self._shared(weights), number)
            if mechanism is not None:
                found = bench.train(study, self.institution, weights, self.training, mechanism)
                change = found.change
            else:
                change = bench.train_apart(
                    study,
                    self.institution,
                    weights,
                    self.training,
                    steps=study.training.local_steps,
                    pull=study.training.proximal_mu,
                )
            if study.aggregation.server_optimizer != "none":
                change, state = server_optimizer.step(study.aggregation, change, state)
            weights = weights.plus(change)
        return weights

    def personal(self, shared: Weights, kept: Kept | None) -> Personal | None:
        """The whole adapter that is the site's own; None where the study makes none.

        Args:
            shared: the shared adapter, as it was sent.
            kept: what the site keeps of the run's newest round.

        Raises:
            FedpactError: as `Trainer.train`, where it is trained only now.
        """
        study, asked = self.study, self.study.personalisation
        adapter = whole(study, self.workbench.model(study).first, shared, kept)
        if asked.keeps_tensors:
            return Personal(adapter)
        if asked.steps is None:
            made = kept.personal if kept is not None else None
            return None if made is None else Personal(made)
        self.workbench.fit(
            study, self.institution, self._shared(adapter), study.training.rounds
        )
        if asked.method == "fine-tune":
            return Personal(self._trained_on(adapter, self.training))
        zero = self._from_zero(adapter)
        return Personal(
            *interpolate(adapter, zero, self.training, self._trained_on, self._right)
        )

    def _trained_on(self, start: Weights, records: EncodedRecords) -> Weights:
        """Trained from there by the site's own optimiser, without noise; the model is ready."""
        asked = self.study.personalisation
        change = self.workbench.train_apart(
            self.study,
            self.institution,
            start,
            records,
            steps=asked.steps or 0,
            training=asked.training(self.study.training),
        )
        return start.plus(change)

    def _right(self, weights: Weights, records: EncodedRecords) -> float:
        return float(self._score(weights, records).scores.sum())

    def _from_zero(self, adapter: Weights) -> Weights:
        """What is trained at its first values, beside the same A."""
        model = self.workbench.model(self.study)
        return adapter.overlaid(model.first.select(model.trained.names))

    def worth(
        self,
        shared: Weights,
        kept: Kept | None,
        own: EncodedRecords | None,
        public: EncodedRecords | None,
        *,
        private: bool,
    ) -> SiteWorth:
        """Compare what the site got with what it would have had alone.

        Args:
            shared: the shared adapter, as it was sent.
            kept: what the site keeps of the run's newest round.
            own: records of the site that nobody trained on, if there are any.
            public: a public test set, if there is one.
            private: whether alone is trained with the noise of the study.

        Raises:
            UsageError: there is nothing to measure on.
            FedpactError: as `alone` and `personal`.
        """
        sets = [
            records if records is not None and len(records) else None
            for records in (own, public)
        ]
        if not any(sets):
            raise UsageError(
                "There is nothing to measure on: every record was trained on.",
                advice="Name a file with --test or --public; or let the study set records aside "
                "([evaluation] site_metrics).",
            )
        alone, personal = self.alone(private=private), self.personal(shared, kept)
        predicts = not self.study.personalisation.keeps_tensors

        def compared(records: EncodedRecords | None) -> Comparison | None:
            if records is None:
                return None
            return Comparison.of(
                self._score(alone, records),
                self._score(shared, records) if predicts else None,
                None if personal is None else self._score(personal.weights, records),
            )

        return SiteWorth(
            site=self.institution,
            own=compared(sets[0]),
            public=compared(sets[1]),
            share_of_shared=personal.share_of_shared if personal else None,
        )

    def _score(self, weights: Weights, records: EncodedRecords) -> Scores:
        """Of a whole adapter of any rank: alone has the site's, a released one may have more."""
        model = self.workbench.model(self.study)
        models.set_ranks_of(model.module, weights.manifest)
        return model.trainer.score(weights, records)

    def _shared(self, weights: Weights) -> Weights:
        return weights.select(self.study.shared(weights.manifest.names))


def read_records(path: Path, study: Study, workbench: Workbench) -> EncodedRecords:
    """A file of test records, encoded as the study's model reads them.

    Raises:
        DataError: it cannot be read, or does not fit the study.
        ModelError: the base model is not at hand.
    """
    task = tasks.for_study(study)
    rows = tabular.rows_for(tabular.read(path), task, path, public=True)
    return task.encode(workbench.model(study).tokenizer, rows, study.training.max_length)
