"""With what norm a run goes on whose norm adapts."""

import sqlalchemy as sa
from alembic import op

revision = "0010_clip_norm"
down_revision = "0009_contributions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; a run that was under way before goes on with the study's norm."""
    with op.batch_alter_table("rounds") as table:
        table.add_column(sa.Column("clip_norm", sa.Float))


def downgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("rounds") as table:
        table.drop_column("clip_norm")
