//! `protocol: auto` on both sides carries what is no HTTP, too, and waits for nobody's first byte.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use postern_loadtest::app::App;
use postern_loadtest::mesh::{Directory, Mesh};

use crate::programs::{Server, program, run};
use crate::support::SOON;

#[test]
fn postgres_and_redis_pass_through_listeners_that_were_told_nothing() {
    let postgres = Server::postgres();
    let mesh = Mesh::start().unwrap();
    let (_server, client) = mesh.pair(postgres.address, "auto").unwrap();
    let mut psql = Command::new(program("psql", "postgresql-client"));
    psql.args([
        "-h",
        "127.0.0.1",
        "-p",
        &client.outbound().port().to_string(),
        "-U",
        "postgres",
        "--no-psqlrc",
    ]);
    psql.args(["--tuples-only", "--no-align", "-c", "select 6 * 7"]);
    assert_eq!(run(psql.env_remove("PGSSLMODE")), "42\n");

    let dir = Directory::new().unwrap();
    let redis = Server::redis(dir.path());
    let mesh = Mesh::start().unwrap();
    let (_server, client) = mesh.pair(redis.address, "auto").unwrap();
    let mut cli = Command::new(program("redis-cli", "redis-tools"));
    cli.args(["-h", "127.0.0.1", "-p", &client.outbound().port().to_string(), "ping"]);
    assert_eq!(run(&mut cli), "PONG\n");
}

#[test]
fn a_server_that_speaks_first_is_heard_without_a_byte_of_its_client() {
    let banner = App::start(|mut stream| {
        stream.write_all(b"220 ready\r\n")?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        stream.write_all(&answer)
    })
    .unwrap();
    let mesh = Mesh::start().unwrap();
    let (server, client) = mesh.pair(banner.address(), "auto").unwrap();
    let mut stream = TcpStream::connect(client.outbound()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).expect("the client says nothing first");
    assert_eq!(&greeting, b"220 ready\r\n");
    stream.write_all(b"EHLO").unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"EHLO");
    // Only the side towards the app had to wait for a byte that did not come; between the proxies ALPN has told.
    let waited = |sidecar: &postern_loadtest::mesh::Sidecar| {
        sidecar.metrics().unwrap().count("postern_detect_timeouts_total", &[])
    };
    assert_eq!((waited(&client), waited(&server)), (1, 0));
}
