-- Foreign trust domains. `document` is the last good bundle, or the one that an operator gave; empty before there is any.
-- `members` is a JSON list of SPIFFE IDs and namespaces: who gets it.
CREATE TABLE federation (
    trust_domain TEXT PRIMARY KEY NOT NULL,
    url          TEXT NOT NULL,
    profile      TEXT NOT NULL,
    endpoint_id  TEXT NOT NULL,
    ca           TEXT NOT NULL,
    members      TEXT NOT NULL,
    document     TEXT NOT NULL,
    fetched_at   BIGINT NOT NULL,
    next_at      BIGINT NOT NULL,
    error        TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    created_by   TEXT NOT NULL
);
INSERT INTO leases (name, holder, token, expires_at) VALUES ('federation', '', 0, 0);
