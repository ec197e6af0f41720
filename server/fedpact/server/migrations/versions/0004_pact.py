"""Proposals and decisions."""

import sqlalchemy as sa
from alembic import op

revision = "0004_pact"
down_revision = "0003_identity"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "proposals",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("proposer", sa.String(120), nullable=False),
        sa.Column("proposed_at", moment, nullable=False),
        sa.Column("started_at", moment),
        sa.Column("ended_at", moment),
        sa.Column("recalled_at", moment),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column(
            "study_digest",
            sa.String(64),
            sa.ForeignKey("proposals.digest"),
            nullable=False,
            index=True,
        ),
        sa.Column("institution", sa.String(120), nullable=False),
        sa.Column("received_at", moment, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Refuse: dropping signatures would forget who agreed to what."""
    raise NotImplementedError("signatures are never dropped")
