"""What a task measures of all records together, such as F1."""

import sqlalchemy as sa
from alembic import op

revision = "0007_task_metrics"
down_revision = "0006_aggregation"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; rounds that were measured before have no more than their accuracy."""
    with op.batch_alter_table("rounds") as table:
        table.add_column(sa.Column("metrics", sa.JSON))


def downgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("rounds") as table:
        table.drop_column("metrics")
