ALTER TABLE lineages DROP COLUMN environment;
ALTER TABLE tokens DROP COLUMN environment;
DROP TABLE identities;
