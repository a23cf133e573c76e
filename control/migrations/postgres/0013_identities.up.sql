-- Declared identities, each one JSON.
CREATE TABLE identities (
    name      TEXT PRIMARY KEY NOT NULL,
    spiffe_id TEXT NOT NULL UNIQUE,
    document  TEXT NOT NULL
);

-- The environment of the credential, which the certificates of its enrollment keep; empty if it has none.
ALTER TABLE tokens ADD COLUMN environment TEXT NOT NULL DEFAULT '';
ALTER TABLE lineages ADD COLUMN environment TEXT NOT NULL DEFAULT '';
