"""What this site states of its ledger to coordinator and auditors, signed."""

import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine

from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.join import load_site
from fedpact.client.ledger import Ledger, Reservation
from fedpact.client.service import Service
from fedpact.common.spending import Spending, StudySpending
from fedpact.common.v1 import federation_pb2 as pb


@dataclass(frozen=True)
class Accounts:
    """An institution's statements.

    Attributes:
        home: its folder.
        engine: its database.
    """

    home: ClientHome
    engine: Engine

    def spending(self) -> Spending:
        """What each study has cost here.

        Raises:
            TrustError: this site has not joined anyone.
            StorageError: the ledger cannot be read.
        """
        ledger = Ledger(self.engine)
        found: list[StudySpending] = []
        seen: set[str] = set()
        for dataset in Datasets(self.engine).list():
            of_study = defaultdict[str, list[Reservation]](list)
            for entry in ledger.history(dataset.name):
                of_study[entry.study_digest].append(entry)
            # Data sets that share a budget share its entries: each study is stated once.
            for digest in of_study.keys() - seen:
                found.append(_stated(ledger, dataset.name, of_study[digest]))
                seen.add(digest)
        return Spending(
            institution=load_site(self.home).institution,
            moment=datetime.now(UTC),
            studies=tuple(sorted(found, key=lambda study: study.study_digest)),
        )

    def submit(self) -> None:
        """State it to the coordinator.

        Raises:
            FedpactError: as `Service.federation`, or as `spending`.
        """
        spending, key = self.spending(), load_site(self.home).signing_key
        request = pb.SubmitStatementRequest(
            statement=spending.text(), signature=spending.sign(key)
        )
        with Service.of(self.home) as service:
            service.federation.SubmitStatement(request)


def listed(home: ClientHome) -> list[Spending]:
    """The newest statement of each institution, for an auditor; signatures checked.

    Raises:
        WireError: the coordinator answers with something else.
        TrustError: a statement is not signed with the key that is given with it.
        FedpactError: as `Service.federation`.
    """
    with Service.of(home) as service:
        answer = service.federation.ListStatements(pb.ListStatementsRequest())
    return [Spending.read(s.statement, s.key, s.signature) for s in answer.statements]


def _stated(ledger: Ledger, dataset: str, entries: list[Reservation]) -> StudySpending:
    digest, delta = entries[0].study_digest, min(entry.delta for entry in entries)
    epsilon = ledger.spent_by_study(dataset, digest, delta)
    return StudySpending(
        study_digest=digest,
        rounds=len(entries),
        unsettled=sum(entry.settled_at is None for entry in entries),
        epsilon=None if math.isinf(epsilon) else epsilon,
        delta=delta,
        unit=entries[0].unit,
    )
