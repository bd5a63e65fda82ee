-- A database of version 1, as the first release of cortexd wrote it.
CREATE TABLE models (
            name TEXT PRIMARY KEY,
            settings TEXT NOT NULL,
            created INTEGER NOT NULL,
            updated INTEGER NOT NULL
        ) STRICT;
CREATE TABLE events (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            time INTEGER NOT NULL,
            model TEXT NOT NULL,
            kind TEXT NOT NULL,
            priority TEXT NOT NULL,
            message TEXT NOT NULL,
            details TEXT NOT NULL,
            invocation_id TEXT NOT NULL,
            actor TEXT NOT NULL
        ) STRICT;
CREATE INDEX events_of_model ON events (model, id);
INSERT INTO models VALUES ('llama-70b', '{"backend": "vllm", "exec": "/opt/vllm/bin/vllm", "gpus": ["0", "1"], "path": "org/llama-70b"}', 1795455000000000, 1795455000000000);
INSERT INTO models VALUES ('tiny', '{"backend": "llamacpp", "exec": "/usr/bin/llama-server", "path": "/models/tiny.gguf", "port": 8001}', 1795455001000000, 1795455001000000);
INSERT INTO events VALUES (1, 1795455000000000, 'llama-70b', 'registered', 'info', 'registered with vllm', '{}', '', 'cortexctl[4711]');
INSERT INTO events VALUES (2, 1795455001000000, 'tiny', 'registered', 'info', 'registered with llamacpp', '{}', '', 'cortexctl[4712]');
INSERT INTO events VALUES (3, 1795455002000000, 'tiny', 'start', 'info', 'start asked for', '{}', '', 'cortexctl[4713]');
INSERT INTO events VALUES (4, 1795455002100000, 'tiny', 'run', 'info', 'run begins (process 4714)', '{"digest": "d", "endpoint": "/health", "url": "http://127.0.0.1:8001"}', '0123456789abcdef0123456789abcdef', '');
INSERT INTO events VALUES (5, 1795455002200000, 'tiny', 'ready', 'info', 'ready after 0.1 s', '{}', '0123456789abcdef0123456789abcdef', '');
PRAGMA user_version = 1;
