"""Alembic's folder: how the site's tables came to be what they are."""
