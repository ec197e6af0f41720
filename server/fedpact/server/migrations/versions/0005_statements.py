"""Statements of what studies have cost."""

import sqlalchemy as sa
from alembic import op

revision = "0005_statements"
down_revision = "0004_pact"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "statements",
        sa.Column("institution", sa.String(120), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    """Drop the table: sites state it again after their next round."""
    op.drop_table("statements")
