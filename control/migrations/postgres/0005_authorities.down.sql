DROP TABLE rotations;
INSERT INTO counters (name, value) VALUES ('issuing', 0);
CREATE TABLE issuing_cas (
    number    BIGINT PRIMARY KEY NOT NULL,
    key_id    TEXT NOT NULL,
    der       BYTEA NOT NULL,
    not_after BIGINT NOT NULL
);
DROP TABLE issuing_requests;
DROP TABLE authorities;
