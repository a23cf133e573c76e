-- A rotation may try its new authority with a share of the proxies first. `kind` is root or issuing; `replica` is whose issuing CA
-- it is; `share` is per cent (0: no canary), a lineage takes part whose hash is below `bound`; `watch` is milliseconds. `reason`
-- says why it was rolled back.
ALTER TABLE rotations ADD COLUMN kind TEXT NOT NULL DEFAULT 'root';
ALTER TABLE rotations ADD COLUMN replica TEXT NOT NULL DEFAULT '';
ALTER TABLE rotations ADD COLUMN share BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rotations ADD COLUMN bound BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rotations ADD COLUMN watch BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rotations ADD COLUMN reason TEXT NOT NULL DEFAULT '';

-- Key id of the root that is asked; empty for the active one.
ALTER TABLE issuing_requests ADD COLUMN root TEXT NOT NULL DEFAULT '';

-- What proxies say of their handshakes while a canary is watched: the first report of a rotation and the newest one, each counters
-- since `since` (milliseconds since 1970, the proxy's start) by the authority that signed the certificate they present, as JSON.
CREATE TABLE canary_reports (
    rotation     TEXT NOT NULL,
    lineage      TEXT NOT NULL,
    first_since  BIGINT NOT NULL,
    first        TEXT NOT NULL,
    latest_since BIGINT NOT NULL,
    latest       TEXT NOT NULL,
    reported_at  BIGINT NOT NULL,
    PRIMARY KEY (rotation, lineage)
);
