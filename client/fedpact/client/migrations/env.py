"""Run the site's migrations on the connection that `fedpact.common.database` opened."""

from alembic import context

from fedpact.client.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table="fedpact_client_version",  # a coordinator may share the database
)
with context.begin_transaction():
    context.run_migrations()
