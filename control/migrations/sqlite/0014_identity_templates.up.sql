-- 1: `spiffe_id` is a template, which declares every identity of its form.
ALTER TABLE identities ADD COLUMN template BIGINT NOT NULL DEFAULT 0;
CREATE INDEX identities_by_template ON identities (template);
