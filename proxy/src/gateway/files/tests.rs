//! Which directories are watched for a path; client CAs that end while the gateway runs.

use std::os::unix::fs::symlink;

use postern_config::file::proxy::ProxyConfig;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, date_time_ymd};

use super::*;

#[test]
fn every_link_on_the_way_is_watched_where_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let make = |path: &str| std::fs::create_dir_all(root.join(path)).unwrap();
    // As Kubernetes mounts a secret.
    make("secret/..2026_01");
    std::fs::write(root.join("secret/..2026_01/tls.crt"), "").unwrap();
    symlink("..2026_01", root.join("secret/..data")).unwrap();
    symlink("..data/tls.crt", root.join("secret/tls.crt")).unwrap();
    // A directory that is swapped as a whole, reached by an absolute link.
    make("versions/7");
    make("etc");
    std::fs::write(root.join("versions/7/tls.crt"), "").unwrap();
    symlink(root.join("versions/7"), root.join("etc/live")).unwrap();

    let of = |path: &str| directories(&root.join(path)).into_iter().collect::<Vec<_>>();
    assert_eq!(of("secret/tls.crt"), [root.join("secret"), root.join("secret/..2026_01")]);
    assert_eq!(of("etc/live/tls.crt"), [root.join("etc"), root.join("versions/7")]);
    assert_eq!(of("etc/../versions/7/tls.crt"), [root.join("versions/7")]);
    assert_eq!(of("versions/7/not-yet"), [root.join("versions/7")]);
    symlink("loop", root.join("loop")).unwrap();
    assert!(of("loop/x").contains(&root), "a loop ends");
}

/// A self-signed certificate in PEM, good until the first of January of year `to`, and its key.
fn certificate(name: &str, ca: bool, to: i32) -> (String, String) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    if ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(to, 1, 1));
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_client_ca_that_ends_is_left_out_and_the_last_one_takes_the_host_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (chain, key) = certificate("a.example", false, 2200);
    let (chain, key) = (write("chain", &chain), write("key", &key));
    let cas = [("first", 2050), ("last", 2080)].map(|(name, to)| write(name, &certificate(name, true, to).0));
    let config: config::Host = postern_config::file::parse(&format!(
        "names: [a.example]
certificate: {{ chain: {chain}, key: {key} }}
client_certificate: {{ mode: required, ca: [{}] }}
routes: [{{ service: s }}]",
        cas.join(", ")
    ))
    .unwrap();
    let snapshots = Arc::<Snapshots>::default();
    let metrics = Arc::new(Metrics::new(&snapshots, &ProxyConfig::default()));
    let jan = |year: i64| (year - 1970) * 31_556_952;
    let (mut files, server) = Files::load(&config, None, &snapshots).unwrap();
    assert!(server.rebuild_at.is_some_and(|at| at < jan(2051)), "{:?}", server.rebuild_at);
    let jwt = crate::jwt::Jwt::new(&[], &metrics.jwt);
    let host = Host::new(&config, Some(server), jwt.rule(&config.jwt));
    let Way::Terminate(server) = &host.way else { panic!("its TLS ends here") };
    let mut look = |year: i64| {
        snapshots.clock.correct(0);
        snapshots.clock.correct((jan(year) - snapshots.clock.now()) * 1000);
        refresh(&host, &mut files, server, &snapshots, &metrics)
    };
    assert!(!look(2049), "nothing has changed");
    assert!(look(2060), "the first has ended");
    let rebuilt = server.load_full();
    assert!(!rebuilt.is_closed() && rebuilt.rebuild_at.is_some_and(|at| at > jan(2079)));
    assert!(look(2090), "the last has ended");
    assert!(server.load().is_closed(), "nobody is let in by a CA that has ended");
    assert!(!look(2091), "and nothing is tried again until a file changes");
    write("first", &certificate("first", true, 2150).0);
    assert!(look(2091) && !server.load().is_closed(), "a new CA opens it again");
    assert_eq!((metrics.gateway.reloads_ok.get(), metrics.gateway.reloads_failed.get()), (2, 1));
}
