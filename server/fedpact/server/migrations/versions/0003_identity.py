"""Roles and signing keys of institutions."""

import sqlalchemy as sa
from alembic import op

revision = "0003_identity"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; who joined before has no signing key and must join again."""
    op.add_column(
        "institutions",
        sa.Column("role", sa.String(16), nullable=False, server_default="data-holder"),
    )
    op.add_column("institutions", sa.Column("signing_key", sa.LargeBinary))
    op.create_index("institutions_signing_key", "institutions", ["signing_key"], unique=True)


def downgrade() -> None:
    """Remove the columns."""
    op.drop_index("institutions_signing_key", "institutions")
    op.drop_column("institutions", "signing_key")
    op.drop_column("institutions", "role")
