ALTER TABLE audit RENAME TO audit_chained;
CREATE TABLE audit (
    seq     BIGINT PRIMARY KEY NOT NULL,
    at      BIGINT NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    outcome TEXT NOT NULL,
    detail  TEXT NOT NULL
);
INSERT INTO audit (seq, at, actor, action, subject, outcome, detail)
    SELECT ROW_NUMBER() OVER (ORDER BY at, chain, seq), at, actor, action, subject, outcome, detail FROM audit_chained;
DROP TABLE audit_chained;
DROP TABLE audit_heads;
DROP TABLE audit_checkpoints;
INSERT INTO counters (name, value) SELECT 'audit', COUNT(*) FROM audit;
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit records are append-only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit records are append-only'); END;
