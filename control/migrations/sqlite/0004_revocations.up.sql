-- One row for each identity that ever got a certificate: whoever issues locks it, so that a revocation cannot be overtaken.
-- Nothing is issued while `banned` is 1; no certificate starts before `revoked_before`.
CREATE TABLE subjects (
    spiffe_id      TEXT PRIMARY KEY NOT NULL,
    last_issued    BIGINT NOT NULL,
    revoked_before BIGINT NOT NULL DEFAULT 0,
    banned         BIGINT NOT NULL DEFAULT 0
);

-- What is no longer believed, until the last certificate that it could refuse has ended. `kind` is serial, identity or key.
CREATE TABLE revocations (
    id            TEXT PRIMARY KEY NOT NULL,
    kind          TEXT NOT NULL,
    issuer_key_id TEXT NOT NULL,
    serial        TEXT NOT NULL,
    spiffe_id     TEXT NOT NULL,
    issued_before BIGINT NOT NULL,
    spki          TEXT NOT NULL,
    reason        TEXT NOT NULL,
    created_at    BIGINT NOT NULL,
    created_by    TEXT NOT NULL,
    ends_at       BIGINT NOT NULL
);
CREATE INDEX revocations_by_end ON revocations (ends_at);

-- When a lineage was ended before its time, and why; it is never renewed again.
ALTER TABLE lineages ADD COLUMN ended_at BIGINT;
ALTER TABLE lineages ADD COLUMN ended_why TEXT NOT NULL DEFAULT '';
CREATE INDEX lineages_by_identity ON lineages (spiffe_id);
