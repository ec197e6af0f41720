"""Populations, every identity that a data set ever had, and what a reservation is for."""

import sqlalchemy as sa
from alembic import op

revision = "0004_population"
down_revision = "0003_agreements"


def upgrade() -> None:
    """Add them; until now each data set was a population of its own."""
    if op.get_bind().dialect.name == "sqlite":
        # Or a cut between dropping the old table and renaming the new would lose the ledger.
        op.execute("SAVEPOINT population")
    op.add_column(
        "datasets", sa.Column("population", sa.String(120), nullable=False, server_default="")
    )
    op.execute("UPDATE datasets SET population = name")
    op.create_table(
        "dataset_identities",
        sa.Column("name", sa.String(120), primary_key=True),
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("population", sa.String(120), primary_key=True),
    )
    op.execute(
        "INSERT INTO dataset_identities (name, sha256, population) "
        "SELECT name, sha256, name FROM datasets "
        "UNION SELECT dataset, sha256, dataset FROM reservations"
    )
    with op.batch_alter_table("reservations") as batch:
        batch.add_column(
            sa.Column("kind", sa.String(16), nullable=False, server_default="training")
        )
        batch.drop_constraint("one_per_round", type_="unique")
        batch.create_unique_constraint("one_per_round", ["run", "round", "dataset", "kind"])


def downgrade() -> None:
    """Refuse: it would forget which data sets share a budget."""
    raise NotImplementedError("what was spent is never forgotten")
