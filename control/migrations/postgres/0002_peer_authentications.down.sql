DROP TABLE peer_authentications;
