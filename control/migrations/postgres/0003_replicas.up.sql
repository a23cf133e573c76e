-- Processes that share this store. `last_seen` is each one's own word, renewed every second.
CREATE TABLE replicas (
    id         TEXT PRIMARY KEY NOT NULL,
    address    TEXT NOT NULL,
    version    TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    last_seen  BIGINT NOT NULL
);

-- Work that one replica does for all. `token` grows whenever the holder changes: who writes with an older one is refused.
CREATE TABLE leases (
    name       TEXT PRIMARY KEY NOT NULL,
    holder     TEXT NOT NULL,
    token      BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
INSERT INTO leases (name, holder, token, expires_at) VALUES ('housekeeping', '', 0, 0);

-- Locked first by every change that reads before it writes.
INSERT INTO counters (name, value) VALUES ('writer', 0);

-- `replica` holds the proxy's stream, or is empty; `acked_at` is when `generation` was answered.
ALTER TABLE proxies ADD COLUMN replica TEXT NOT NULL DEFAULT '';
ALTER TABLE proxies ADD COLUMN acked_at BIGINT NOT NULL DEFAULT 0;
