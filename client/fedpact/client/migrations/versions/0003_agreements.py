"""Studies that were shown here, and this institution's decisions on them."""

import sqlalchemy as sa
from alembic import op

revision = "0003_agreements"
down_revision = "0002"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "shown_studies",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("shown_at", _MOMENT, nullable=False),
        sa.Column("heard_at", _MOMENT, nullable=False),
        sa.Column("heard", sa.JSON(), nullable=False),
    )
    op.create_table(
        "own_decisions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("study_digest", sa.String(64), nullable=False, index=True),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("sent_at", _MOMENT),
    )


def downgrade() -> None:
    """Refuse: dropping signatures would forget what this institution agreed to."""
    raise NotImplementedError("signatures are never dropped")
