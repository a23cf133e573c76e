-- `PeerAuthentication` documents; a policy of the same name is another thing.
CREATE TABLE peer_authentications (
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    document  TEXT NOT NULL,
    PRIMARY KEY (namespace, name)
);
