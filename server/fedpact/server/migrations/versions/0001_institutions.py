"""Institutions and their invitations."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "institutions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(120), nullable=False, unique=True),
        sa.Column("sector", sa.String(16), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("invited_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.Column("joined_at", moment),
        sa.Column("public_key", sa.LargeBinary),
        sa.Column("node_id", sa.String(20), unique=True),
        sa.Column("revoked_at", moment),
    )


def downgrade() -> None:
    """Remove the table."""
    op.drop_table("institutions")
