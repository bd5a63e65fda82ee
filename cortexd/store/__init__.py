"""Configuration and audit log in SQLite."""

from cortexd.store.database import EventQuery, Store, StoredModel

__all__ = ["EventQuery", "Store", "StoredModel"]
