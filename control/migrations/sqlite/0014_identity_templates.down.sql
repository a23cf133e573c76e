DROP INDEX identities_by_template;
DELETE FROM identities WHERE template = 1;
ALTER TABLE identities DROP COLUMN template;
