"""What each site's update was worth in a round."""

import sqlalchemy as sa
from alembic import op

revision = "0009_contributions"
down_revision = "0008_classes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; rounds that were measured before have none."""
    with op.batch_alter_table("rounds") as table:
        table.add_column(sa.Column("contributions", sa.JSON))


def downgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("rounds") as table:
        table.drop_column("contributions")
