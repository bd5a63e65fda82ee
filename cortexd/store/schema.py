"""The database's schema, as the steps that lead to it; `PRAGMA user_version` counts the steps taken."""

from __future__ import annotations

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # settings: a JSON object of what was asked for; everything else is a default and may change with a release.
        """CREATE TABLE models (
            name TEXT PRIMARY KEY,
            settings TEXT NOT NULL,
            created INTEGER NOT NULL,
            updated INTEGER NOT NULL
        ) STRICT""",
        """CREATE TABLE events (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            time INTEGER NOT NULL,
            model TEXT NOT NULL,
            kind TEXT NOT NULL,
            priority TEXT NOT NULL,
            message TEXT NOT NULL,
            details TEXT NOT NULL,
            invocation_id TEXT NOT NULL,
            actor TEXT NOT NULL
        ) STRICT""",
        "CREATE INDEX events_of_model ON events (model, id)",
    ),
    (
        # What was begun and has several steps; a row is there from before the first until after the last.
        """CREATE TABLE intents (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            time INTEGER NOT NULL,
            model TEXT NOT NULL,
            kind TEXT NOT NULL,
            details TEXT NOT NULL,
            actor TEXT NOT NULL
        ) STRICT""",
    ),
)

VERSION = len(MIGRATIONS)

INDEXES = ("CREATE INDEX IF NOT EXISTS events_of_kind ON events (model, kind, id)",)
"""What makes the schema faster and no other: an older cortexd need not know of it. With this one it is cheap to see what of a
model's past has to stay when the log is pruned."""
