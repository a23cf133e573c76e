-- What may have one live key: a pod, a CI system's token. `lineage` is the enrollment that its key began; until `not_after`
-- (the credential's end, milliseconds since 1970) no other key takes its place.
CREATE TABLE attestations (
    binding   TEXT PRIMARY KEY NOT NULL,
    spki      BYTEA NOT NULL,
    lineage   TEXT NOT NULL,
    not_after BIGINT NOT NULL
);
CREATE INDEX attestations_by_end ON attestations (not_after);
