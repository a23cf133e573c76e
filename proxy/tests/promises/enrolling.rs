//! Whoever is not the control plane of the pinned root learns no join secret: it gets a handshake and not one byte more.

use base64::Engine as _;
use postern_config::enroll::{JoinString, Pin};
use zeroize::Zeroizing;

use crate::support::forge::Authority;
use crate::support::mesh::{DOMAIN, Directory, Mesh, PEER, Presented};
use crate::support::process::{command, finish};
use crate::support::server::{Server, server_config, tls};

const CONTROL: &str = "spiffe://corp.example/postern/control";

/// A join string for `domain` at `server` that pins this root.
fn join(root: &Authority, server: &Server, domain: &str) -> String {
    let anchor = postern_config::svid::Anchor::new(root.der.clone()).unwrap();
    let join = JoinString {
        token_id: "01JD9W3V8Q4T7ZK2M5XB6R0N1C".to_owned(),
        secret: Zeroizing::new([42; 32]),
        pins: vec![Pin(postern_proxy::tls::sha256(anchor.spki()))],
        trust_domain: domain.parse().unwrap(),
        address: server.address.to_string(),
    };
    join.reveal().to_string()
}

/// A server that presents this and speaks HTTP/2, as the control plane would.
fn posing(presented: &Presented) -> Server {
    let mut config = server_config(presented);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Server::start(tls(config))
}

/// Joins there; what is said on standard error. The proxy must end by itself without having sent anything.
fn refused(server: &Server, join: &str) -> String {
    let dir = Directory::new();
    let file = dir.write("join", join);
    let mut command = command();
    command
        .args(["--metrics", "127.0.0.1:0", "--inbound", "127.0.0.1:0=127.0.0.1:9", "--join-file"])
        .arg(file);
    let (code, out, err) = finish(command);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert_eq!(server.seen.connections(), 1, "it tried once and understood: {err}");
    assert!(server.seen.plain.lock().unwrap().is_empty(), "it was told something");
    let secret = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode([42; 32]);
    assert!(!err.contains(&secret) && !err.contains("panicked"), "{err}");
    err
}

/// The chain that is presented in an enrollment: with the root.
fn with_root(mut presented: Presented, mesh: &Mesh) -> Presented {
    presented.chain.push(mesh.root.der.clone());
    presented
}

#[test]
fn a_server_under_another_root_than_the_pinned_one_learns_nothing() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let server = posing(&with_root(other.leaf(CONTROL, |spec| spec), &other));
    let err = refused(&server, &join(&mesh.root, &server, DOMAIN));
    assert!(err.contains("does not present the root that the join string pins"), "{err}");
}

#[test]
fn the_pinned_root_beside_a_chain_of_another_is_no_proof() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let server = posing(&with_root(other.leaf(CONTROL, |spec| spec), &mesh));
    let err = refused(&server, &join(&mesh.root, &server, DOMAIN));
    assert!(err.contains("no path leads") || err.contains("does not verify"), "{err}");
}

#[test]
fn a_workload_of_the_pinned_root_cannot_pose_as_the_control_plane() {
    let mesh = Mesh::new();
    let server = posing(&with_root(mesh.leaf(PEER, |spec| spec), &mesh));
    let err = refused(&server, &join(&mesh.root, &server, DOMAIN));
    assert!(err.contains(PEER) && err.contains(CONTROL), "{err}");
}

#[test]
fn the_control_plane_of_another_trust_domain_is_not_ours() {
    let mesh = Mesh::new();
    let server = posing(&with_root(mesh.leaf(CONTROL, |spec| spec), &mesh));
    let err = refused(&server, &join(&mesh.root, &server, "other.example"));
    assert!(err.contains("corp.example"), "{err}");
}

#[test]
fn a_chain_without_its_root_says_so() {
    let mesh = Mesh::new();
    let server = posing(&mesh.leaf(CONTROL, |spec| spec));
    let err = refused(&server, &join(&mesh.root, &server, DOMAIN));
    assert!(err.contains("does not present the root"), "{err}");
}
