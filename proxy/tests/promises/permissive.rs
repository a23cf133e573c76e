//! A port that takes plain text beside mTLS: whatever begins like TLS is TLS, with everything that this demands.

use std::io::Write as _;

use rustls::AlertDescription;

use crate::support::client::{Client, End, config, read_to_end, tcp};
use crate::support::mesh::Mesh;
use crate::support::process::{Options, Proxy};
use crate::support::server::Server;

struct Scene {
    mesh: Mesh,
    app: Server,
    proxy: Proxy,
}

fn scene() -> Scene {
    let (mesh, app) = (Mesh::new(), Server::echo());
    let inbound =
        format!("inbound: [{{ listen: \"127.0.0.1:0\", app: \"{}\", mtls: permissive }}]", app.address);
    let options =
        Options::new(app.address, app.address).yaml(&inbound).yaml("limits: { handshake_timeout: 1s }");
    let proxy = Proxy::start(&mesh, &options);
    Scene { mesh, app, proxy }
}

/// The hello as one TLS record per `size` bytes.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let (header, message) = hello.split_at(5);
    let record = |part: &[u8]| [&header[..3], &(part.len() as u16).to_be_bytes(), part].concat();
    message.chunks(size).flat_map(record).collect()
}

#[test]
fn a_hello_in_any_pieces_is_mutual_tls() {
    let scene = scene();
    for (record_size, segment_size) in [(usize::MAX, 1), (100, 7), (1000, 1000), (17, 1)] {
        let mut client = Client::prepare(tcp(scene.proxy.inbound), config(Some(&scene.mesh.honest())));
        let mut hello = Vec::new();
        client.tls.write_tls(&mut hello).unwrap();
        let sent = if record_size == usize::MAX { hello } else { in_records(&hello, record_size) };
        for segment in sent.chunks(segment_size) {
            client.tcp.write_all(segment).unwrap();
        }
        client.handshake().unwrap();
        let source = client.source();
        assert_eq!(client.echo(b"hello"), (b"hello".to_vec(), End::Clean), "records of {record_size}");
        let record = scene.proxy.record(source);
        assert_eq!(record["peer"], crate::support::mesh::PEER, "records of {record_size}: {record}");
    }
}

#[test]
fn tls_without_a_certificate_or_without_an_end_never_becomes_plain_text() {
    let scene = scene();
    let mut anonymous = Client::prepare(tcp(scene.proxy.inbound), config(None));
    // In TLS 1.3 the client is done before it has been judged.
    let end = match anonymous.handshake() {
        Ok(()) => read_to_end(&mut anonymous.stream()).1,
        Err(end) => end,
    };
    assert_eq!(end, End::Alert(AlertDescription::CertificateRequired));
    let mut begun = tcp(scene.proxy.inbound);
    begun.write_all(&[22, 3, 1]).unwrap();
    let (said, _) = read_to_end(&mut begun);
    assert_eq!(said, b"", "a handshake that does not go on is given up");
    assert_eq!(scene.app.seen.bytes(), 0, "nothing of either reached the app");
    let metrics = scene.proxy.metrics();
    assert_eq!(metrics.of("postern_plaintext_connections_total"), 0);
}

#[test]
fn plain_text_is_taken_as_nobody_s() {
    let scene = scene();
    let mut plain = tcp(scene.proxy.inbound);
    plain.write_all(b"hello").unwrap();
    plain.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut plain), (b"hello".to_vec(), End::Clean));
    let record = scene.proxy.record(plain.local_addr().unwrap());
    assert_eq!((record["outcome"].as_str(), record.get("peer")), (Some("completed"), None), "{record}");
    assert_eq!(scene.proxy.metrics().of("postern_plaintext_connections_total"), 1);
}
