"""Alembic's entry: runs the revisions on the connection that `open_database` hands over."""

from alembic import context

from fedpact.server import (  # noqa: F401 - theirs are its tables too
    pact_tables,
    run_tables,
    statements,
)
from fedpact.server.tables import Base

connection = context.config.attributes["connection"]
# SQLite cannot alter a table in place: Alembic copies it.
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
