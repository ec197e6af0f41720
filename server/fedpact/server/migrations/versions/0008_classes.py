"""What sites count for each label."""

import sqlalchemy as sa
from alembic import op

revision = "0008_classes"
down_revision = "0007_task_metrics"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; answers that came before have none."""
    with op.batch_alter_table("answers") as table:
        table.add_column(sa.Column("classes", sa.JSON))


def downgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("answers") as table:
        table.drop_column("classes")
