DROP INDEX lineages_by_identity;
ALTER TABLE lineages DROP COLUMN ended_why;
ALTER TABLE lineages DROP COLUMN ended_at;
DROP TABLE revocations;
DROP TABLE subjects;
