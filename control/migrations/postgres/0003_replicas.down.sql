ALTER TABLE proxies DROP COLUMN acked_at;
ALTER TABLE proxies DROP COLUMN replica;
DELETE FROM counters WHERE name = 'writer';
DROP TABLE leases;
DROP TABLE replicas;
