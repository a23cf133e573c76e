-- Public keys for JWT-SVIDs of every replica. A key stands here before it signs and until the last token that it signed has
-- ended; all of them are in the bundle. Private keys lie in their replica's data directory.
CREATE TABLE jwt_keys (
    kid          TEXT PRIMARY KEY NOT NULL,
    replica      TEXT NOT NULL,
    jwk          TEXT NOT NULL,
    published_at BIGINT NOT NULL,
    signs_from   BIGINT NOT NULL,
    signs_until  BIGINT NOT NULL,
    ends_at      BIGINT NOT NULL
);
CREATE INDEX jwt_keys_by_end ON jwt_keys (ends_at);
