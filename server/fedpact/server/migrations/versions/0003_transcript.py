"""The coordinator's transcript."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "coordinator_transcript",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("line", sa.Text, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("next_key", sa.String(64), nullable=False),
    )


def downgrade() -> None:
    """Refuse: dropping a transcript would forget what happened."""
    raise NotImplementedError("a transcript is never dropped")
