-- Times are milliseconds since 1970. Serials are lower-case hex without leading zeros. JSON stands in TEXT.
-- Statements in the code are the same for every engine; only this folder differs.

CREATE TABLE facts (
    name  TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
);

-- `generation` grows in the transaction of every change that proxies must hear of; `bundle` is spiffe_sequence.
CREATE TABLE counters (
    name  TEXT PRIMARY KEY NOT NULL,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('generation', 1), ('bundle', 1), ('issuing', 0), ('audit', 0);

CREATE TABLE tokens (
    id            TEXT PRIMARY KEY NOT NULL,
    secret_hash   BLOB NOT NULL,
    spiffe_id     TEXT NOT NULL,
    labels        TEXT NOT NULL,
    cidr          TEXT,
    max_ttl_ms    BIGINT,
    created_at    BIGINT NOT NULL,
    created_by    TEXT NOT NULL,
    expires_at    BIGINT NOT NULL,
    redeemed_at   BIGINT,
    redeemed_spki BLOB,
    lineage       TEXT
);

-- One lineage is one enrollment. `next_serial` is issued but not yet used; its first use makes it current.
CREATE TABLE lineages (
    id             TEXT PRIMARY KEY NOT NULL,
    spiffe_id      TEXT NOT NULL,
    labels         TEXT NOT NULL,
    instance       TEXT NOT NULL,
    max_ttl_ms     BIGINT,
    current_serial TEXT NOT NULL,
    next_serial    TEXT,
    created_at     BIGINT NOT NULL,
    last_seen      BIGINT NOT NULL
);

CREATE TABLE certificates (
    serial        TEXT PRIMARY KEY NOT NULL,
    lineage       TEXT NOT NULL REFERENCES lineages (id),
    spki_hash     BLOB NOT NULL,
    leaf          BLOB NOT NULL,
    issuer        BLOB NOT NULL,
    issuer_key_id TEXT NOT NULL,
    not_before    BIGINT NOT NULL,
    not_after     BIGINT NOT NULL
);
CREATE INDEX certificates_by_lineage ON certificates (lineage);
CREATE INDEX certificates_by_end ON certificates (not_after);

CREATE TABLE services (
    name      TEXT PRIMARY KEY NOT NULL,
    identity  TEXT NOT NULL,
    endpoints TEXT NOT NULL
);

-- `expires_at` is NULL while the announcing proxy's stream is open.
CREATE TABLE announcements (
    service    TEXT NOT NULL,
    address    TEXT NOT NULL,
    lineage    TEXT NOT NULL REFERENCES lineages (id),
    expires_at BIGINT,
    PRIMARY KEY (lineage, service, address)
);

CREATE TABLE policies (
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    document  TEXT NOT NULL,
    PRIMARY KEY (namespace, name)
);

-- What each proxy said last: the generation it enforces, or why it refused one.
CREATE TABLE proxies (
    lineage    TEXT PRIMARY KEY NOT NULL REFERENCES lineages (id),
    instance   TEXT NOT NULL,
    version    TEXT NOT NULL,
    generation BIGINT NOT NULL,
    error      TEXT NOT NULL,
    last_seen  BIGINT NOT NULL
);

CREATE TABLE issuing_cas (
    number    BIGINT PRIMARY KEY NOT NULL,
    key_id    TEXT NOT NULL,
    der       BLOB NOT NULL,
    not_after BIGINT NOT NULL
);

CREATE TABLE audit (
    seq     BIGINT PRIMARY KEY NOT NULL,
    at      BIGINT NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    outcome TEXT NOT NULL,
    detail  TEXT NOT NULL
);
-- Append-only: the database itself refuses to change or drop a record.
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit records are append-only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit records are append-only'); END;
