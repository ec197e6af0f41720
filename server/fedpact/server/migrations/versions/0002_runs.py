"""Studies, runs, rounds and what each institution did in them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "studies",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column(
            "study_digest", sa.String(64), sa.ForeignKey("studies.digest"), nullable=False
        ),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("started_at", moment),
        sa.Column("ended_at", moment),
        sa.Column("stop", sa.Boolean, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("flower_run", sa.String(32), nullable=False),
        sa.Column("process", sa.Integer),
        sa.Column("adapter", sa.Text, nullable=False),
    )
    op.create_table(
        "rounds",
        sa.Column("run", sa.String(64), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("started_at", moment, nullable=False),
        sa.Column("seconds", sa.Float),
        sa.Column("loss", sa.Float),
        sa.Column("accuracy", sa.Float),
        sa.Column("adapter_digest", sa.String(64)),
    )
    op.create_table(
        "answers",
        sa.Column("run", sa.String(64), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("institution", sa.String(120), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("bytes_in", sa.BigInteger, nullable=False),
        sa.Column("epsilon", sa.Float),
        sa.Column("norm", sa.Float),
        sa.Column("digest", sa.String(64)),
        sa.Column("loss", sa.Float),
        sa.Column("accuracy", sa.Float),
    )


def downgrade() -> None:
    """Remove the tables."""
    for table in ("answers", "rounds", "runs", "studies"):
        op.drop_table(table)
