"""Configuration and audit log in SQLite."""

from cortexd.store.database import EventQuery, Intent, Store, StoredModel

__all__ = ["EventQuery", "Intent", "Store", "StoredModel"]
