-- One chain of records for each replica. `hash` covers everything else in the row, `prev` is the hash of the record before it in
-- its chain. Records from before there were chains have the chain '' and no hash.
ALTER TABLE audit RENAME TO audit_unchained;
CREATE TABLE audit (
    chain   TEXT NOT NULL,
    seq     BIGINT NOT NULL,
    at      BIGINT NOT NULL,
    id      TEXT NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    outcome TEXT NOT NULL,
    detail  TEXT NOT NULL,
    prev    TEXT NOT NULL,
    hash    TEXT NOT NULL,
    PRIMARY KEY (chain, seq)
);
INSERT INTO audit (chain, seq, at, id, actor, action, subject, outcome, detail, prev, hash)
    SELECT '', seq, at, '', actor, action, subject, outcome, detail, '', '' FROM audit_unchained;
DROP TABLE audit_unchained;
DELETE FROM counters WHERE name = 'audit';
CREATE INDEX audit_by_time ON audit (at);

-- The last record of each chain; whoever appends holds its row.
CREATE TABLE audit_heads (
    chain TEXT PRIMARY KEY NOT NULL,
    seq   BIGINT NOT NULL,
    hash  TEXT NOT NULL
);

-- What a replica has signed: the heads of all chains at a moment, as JSON.
CREATE TABLE audit_checkpoints (
    id       TEXT PRIMARY KEY NOT NULL,
    document TEXT NOT NULL
);

-- Append-only: the database itself refuses to change or drop a record.
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit records are append-only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit records are append-only'); END;
CREATE TRIGGER checkpoints_no_update BEFORE UPDATE ON audit_checkpoints BEGIN SELECT RAISE(ABORT, 'checkpoints are append-only'); END;
CREATE TRIGGER checkpoints_no_delete BEFORE DELETE ON audit_checkpoints BEGIN SELECT RAISE(ABORT, 'checkpoints are append-only'); END;
