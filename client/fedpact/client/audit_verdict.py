"""An audit's verdict as a signed file, and what it costs to show it to others.

What the canaries prove follows from one differentially private training on the records, so showing it
costs that training's ε, which the ledger reserves before the attack. The membership attack's AUC is
computed on the records themselves: it is never in a verdict that others may see.
"""

import secrets
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from fedpact.client import policy
from fedpact.client.audit import Audit
from fedpact.client.datasets import Datasets, find_dataset
from fedpact.client.home import ClientHome
from fedpact.client.ledger import Ledger
from fedpact.client.membership import Membership
from fedpact.common import identity
from fedpact.common.planned import plan
from fedpact.common.private_files import write_private
from fedpact.common.study import Study
from fedpact.common.verdict import Verdict
from fedpact.common.version import fedpact_version


def pay(home: ClientHome, study: Study, institution: str, dataset: str | None) -> None:
    """Reserve the ε of one run of a study, as the audit is about to train it.

    Raises:
        BudgetError: the budget does not allow it; then nothing may be released.
        FedpactError: as reading data set and policy, and writing the ledger.
    """
    datasets, rules = Datasets(home.open_database()), policy.load(home.policy)
    chosen = find_dataset(datasets, study) if dataset is None else datasets.get(dataset)
    a_round = plan(study, institution)
    mechanism = a_round and replace(a_round, steps=study.total_steps)
    Ledger(home.open_database()).reserve(
        chosen.name,
        study,
        f"audit-{secrets.token_hex(6)}",
        1,
        mechanism,
        cap=rules.max_epsilon,
        study_cap=rules.study_cap,
    )


def save(
    path: Path,
    home: ClientHome,
    study_digest: str,
    institution: str,
    found: Audit,
    unit: str,
    members: Membership | None,
) -> None:
    """Write a verdict, signed.

    Args:
        path: the file.
        home: the site's folder, with the institution's key.
        study_digest: of the study as it was given.
        institution: whose site it is.
        found: what the attack found.
        unit: whom the study's promise is to.
        members: what the membership attack found; None makes a verdict that others may see.

    Raises:
        TrustError: there is no key to sign with.
        StorageError: it cannot be written.
    """
    verdict = Verdict(
        study_digest=study_digest,
        institution=institution,
        on=datetime.now(UTC).date(),
        software=fedpact_version(),
        claimed_epsilon=found.covered,
        delta=found.delta,
        unit=unit
        if found.covered == found.claimed
        else f"person with {found.canary_records} records",
        lower_bound=found.bound,
        confidence=found.confidence,
        canaries=found.canaries,
        guesses=found.guesses,
        correct=found.correct,
        contradicted=found.contradicted,
        releasable=members is None,
        membership_auc=members.by_loss.auc if members is not None else None,
    )
    write_private(path, verdict.signed(identity.load_signing_key(home.signing_key)).encode())
