"""The institution's daemon."""
