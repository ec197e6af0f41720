"""Tables of the pact: which studies were proposed, and what institutions decided on them."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from fedpact.server.tables import Base, Moment


class ProposalRow(Base):
    """A study that was proposed, by its digest.

    `document` is the study's canonical JSON. `started_at` is when the first run of it was.
    """

    __tablename__ = "proposals"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    document: Mapped[str] = mapped_column(Text)
    proposer: Mapped[str] = mapped_column(String(120))
    proposed_at: Mapped[datetime] = mapped_column(Moment)
    started_at: Mapped[datetime | None] = mapped_column(Moment)
    ended_at: Mapped[datetime | None] = mapped_column(Moment)
    recalled_at: Mapped[datetime | None] = mapped_column(Moment)


class DecisionRow(Base):
    """A signed decision; rows are only ever added.

    `document` is the decision's JSON, signature included, as it was signed.
    """

    __tablename__ = "decisions"

    # SQLite numbers rows by itself only where the key is an INTEGER.
    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True
    )
    study_digest: Mapped[str] = mapped_column(ForeignKey("proposals.digest"), index=True)
    institution: Mapped[str] = mapped_column(String(120))
    received_at: Mapped[datetime] = mapped_column(Moment)
    document: Mapped[str] = mapped_column(Text)
