-- Certificates of the trust domain's own keys; the keys themselves never come here. `kind` is root or issuing; `state` is
-- prepared, active, retired, tainted or pruned; `replica` is whose issuing CA it is. `issuer` is the key id of what signed it.
-- `cross` is a root's certificate as signed by the root before it.
CREATE TABLE authorities (
    key_id     TEXT PRIMARY KEY NOT NULL,
    kind       TEXT NOT NULL,
    state      TEXT NOT NULL,
    replica    TEXT NOT NULL,
    issuer     TEXT NOT NULL,
    name       TEXT NOT NULL,
    der        BYTEA NOT NULL,
    cross_der  BYTEA NOT NULL,
    not_before BIGINT NOT NULL,
    not_after  BIGINT NOT NULL,
    changed_at BIGINT NOT NULL
);

-- Requests of replicas that do not hold the root's key. `proof` is a signature over `csr` by the replica's issuing key of before,
-- or empty: then an operator has to approve the key.
CREATE TABLE issuing_requests (
    replica    TEXT PRIMARY KEY NOT NULL,
    csr        BYTEA NOT NULL,
    spki       TEXT NOT NULL,
    proof      BYTEA NOT NULL,
    proved_by  TEXT NOT NULL,
    approved   TEXT NOT NULL,
    asked_at   BIGINT NOT NULL
);

-- The audit record has what stood here.
DROP TABLE issuing_cas;
DELETE FROM counters WHERE name = 'issuing';

-- The rotation of a root that is under way: at most one row.
CREATE TABLE rotations (
    id         TEXT PRIMARY KEY NOT NULL,
    stage      TEXT NOT NULL,
    old_root   TEXT NOT NULL,
    new_root   TEXT NOT NULL,
    generation BIGINT NOT NULL,
    forced     BIGINT NOT NULL,
    tainted    BIGINT NOT NULL,
    began_at   BIGINT NOT NULL,
    changed_at BIGINT NOT NULL
);
