"""Whom the ε of a reservation protects: until now a record, always."""

import sqlalchemy as sa
from alembic import op

revision = "0005_unit"
down_revision = "0004_population"


def upgrade() -> None:
    """Add the column."""
    op.add_column(
        "reservations",
        sa.Column("unit", sa.String(520), nullable=False, server_default="record"),
    )


def downgrade() -> None:
    """Refuse: it would take one person's ε for one record's."""
    raise NotImplementedError("what was spent is never forgotten")
