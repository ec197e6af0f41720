"""Updates that wait for a person's word before they leave."""

import sqlalchemy as sa
from alembic import op

revision = "0006_held"
down_revision = "0005_unit"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "held_updates",
        sa.Column("run", sa.String(64), primary_key=True),
        sa.Column("round", sa.Integer(), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("summary", sa.JSON(), nullable=False),
        sa.Column("word", sa.String(16), nullable=True),
    )


def downgrade() -> None:
    """Refuse: what was refused once would be asked about again."""
    raise NotImplementedError("what a person decided is never dropped")
