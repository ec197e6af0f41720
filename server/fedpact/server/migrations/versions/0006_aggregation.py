"""The server optimiser's state after a round, and what the round's updates were like."""

import sqlalchemy as sa
from alembic import op

revision = "0006_aggregation"
down_revision = "0005_statements"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; rounds that ended before have none of it."""
    with op.batch_alter_table("rounds") as table:
        table.add_column(sa.Column("state_digest", sa.String(64)))
        table.add_column(sa.Column("averaging_loss", sa.Float))
        table.add_column(sa.Column("mean_cosine", sa.Float))


def downgrade() -> None:
    """Drop the columns."""
    with op.batch_alter_table("rounds") as table:
        for name in ("state_digest", "averaging_loss", "mean_cosine"):
            table.drop_column(name)
