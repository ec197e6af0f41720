"""The site's transcript."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "site_transcript",
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("next_key", sa.String(64), nullable=False),
    )


def downgrade() -> None:
    """Refuse: dropping a transcript would forget what happened."""
    raise NotImplementedError("a transcript is never dropped")
