DELETE FROM leases WHERE name = 'federation';
DROP TABLE federation;
