//! Unmodified programs talk through two sidecars as if nobody stood between them.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::programs::{Server, program, run};
use aws_lc_rs::digest::{Context, SHA256};
use postern_loadtest::app::App;
use postern_loadtest::mesh::{Mesh, Sidecar};

const SOON: Duration = Duration::from_secs(10);
const MIB: usize = 1 << 20;

/// A pair of sidecars in front of `app`: (mesh, server side, client side).
fn pair(app: SocketAddr) -> (Mesh, Sidecar, Sidecar) {
    let mesh = Mesh::start().unwrap();
    let server = mesh.server("server", app).unwrap();
    let client = mesh.client("client", "server").unwrap();
    (mesh, server, client)
}

fn handshakes(server: &Sidecar) -> u64 {
    let ok = [("direction", "inbound"), ("result", "ok")];
    server.metrics().unwrap().count("postern_handshakes_total", &ok)
}

#[test]
fn curl_reaches_nginx() {
    let dir = postern_loadtest::mesh::Directory::new().unwrap();
    std::fs::create_dir(dir.path().join("www")).unwrap();
    std::fs::write(dir.path().join("www/index.html"), "hello from nginx\n").unwrap();
    let large: Vec<u8> = Noise(7).take(8 * MIB).collect();
    std::fs::write(dir.path().join("www/large"), &large).unwrap();
    let nginx = Server::nginx(dir.path());
    let (_mesh, server, client) = pair(nginx.address);
    let curl = || {
        let mut curl = Command::new(program("curl", "curl"));
        curl.args(["--silent", "--show-error", "--fail", "--max-time", "60"]);
        curl
    };
    let url = |path: &str| format!("http://{}/{path}", client.outbound());

    assert_eq!(run(curl().arg(url(""))), "hello from nginx\n");
    let before = handshakes(&server);
    let twice = run(curl().arg(url("")).arg(url("index.html")));
    assert_eq!(twice, "hello from nginx\nhello from nginx\n");
    assert_eq!(handshakes(&server), before + 1, "keep-alive is one connection, so one handshake");

    let file = dir.path().join("got");
    run(curl().arg(url("large")).arg("--output").arg(&file));
    assert!(std::fs::read(&file).unwrap() == large, "a file changed on the way");
    let missing = curl().arg(url("nothing")).output().unwrap();
    assert_eq!(missing.status.code(), Some(22), "the program's own 404, not ours");
}

#[test]
fn redis_cli_reaches_redis() {
    let dir = postern_loadtest::mesh::Directory::new().unwrap();
    let redis = Server::redis(dir.path());
    let (_mesh, _server, client) = pair(redis.address);
    let port = client.outbound().port().to_string();
    let cli = || {
        let mut cli = Command::new(program("redis-cli", "redis-tools"));
        cli.args(["-h", "127.0.0.1", "-p", &port]);
        cli
    };
    assert_eq!(run(cli().arg("ping")), "PONG\n");
    assert_eq!(run(cli().args(["set", "greeting", "hello"])), "OK\n");
    assert_eq!(run(cli().args(["get", "greeting"])), "hello\n");

    let mut pipe = cli().arg("--pipe").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = pipe.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        for number in 0..10_000 {
            write!(input, "SET key:{number} {number}\r\n").unwrap();
        }
    });
    let said = String::from_utf8(pipe.wait_with_output().unwrap().stdout).unwrap();
    writer.join().unwrap();
    assert!(said.contains("errors: 0, replies: 10000"), "{said}");
    assert_eq!(run(cli().arg("dbsize")), "10001\n");
}

#[test]
fn psql_reaches_postgres() {
    let postgres = Server::postgres();
    let (_mesh, server, client) = pair(postgres.address);
    let psql = |query: &str| {
        let mut psql = Command::new(program("psql", "postgresql-client"));
        psql.args(["-h", "127.0.0.1", "-p", &client.outbound().port().to_string(), "-U", "postgres"]);
        psql.args(["--no-psqlrc", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", "-c", query]);
        run(psql.env_remove("PGSSLMODE"))
    };
    assert_eq!(psql("select 6 * 7"), "42\n");
    assert_eq!(psql("select n from generate_series(1, 100000) n").lines().count(), 100_000);
    // What the database sees is the sidecar beside it.
    assert_eq!(psql("select inet_client_addr()"), "127.0.0.1\n");
    assert_eq!(handshakes(&server), 3);
}

#[test]
fn a_server_may_speak_first() {
    let banner = App::start(|mut stream| {
        stream.write_all(b"220 ready\r\n")?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        stream.write_all(&answer)
    })
    .unwrap();
    let (_mesh, _server, client) = pair(banner.address());
    let mut stream = TcpStream::connect(client.outbound()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).expect("no byte of ours is needed");
    assert_eq!(&greeting, b"220 ready\r\n");
    stream.write_all(b"EHLO").unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"EHLO");
}

#[test]
fn a_gibibyte_arrives_intact_and_the_answer_comes_after_the_half_close() {
    const UP: usize = 1024;
    const DOWN: usize = 128;
    /// What any proxy may hold for one connection, whatever flows through it, with room for the program itself.
    const MEMORY: u64 = 96 << 20;
    let app = App::start(|mut stream| {
        // The digest goes back only once the peer has closed its half; then comes as much again in the other direction.
        let digest = digest_of(&mut stream)?;
        stream.write_all(&digest)?;
        let digest = send(&mut stream, 2, DOWN)?;
        stream.write_all(&digest)
    })
    .unwrap();
    let (_mesh, mut server, mut client) = pair(app.address());
    let mut stream = TcpStream::connect(client.outbound()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();

    let sent = send(&mut stream, 1, UP).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut arrived = [0; 32];
    stream.read_exact(&mut arrived).unwrap();
    assert_eq!(arrived.as_slice(), sent, "a byte changed on the way up");

    let mut body = vec![0; DOWN * MIB];
    stream.read_exact(&mut body).unwrap();
    let mut told = Vec::new();
    stream.read_to_end(&mut told).unwrap();
    assert_eq!(told, digest_of(&mut body.as_slice()).unwrap(), "a byte changed on the way down");

    for sidecar in [&mut server, &mut client] {
        let rss = sidecar.process().rss().unwrap();
        assert!(rss < MEMORY, "{} holds {} MiB", sidecar.name(), rss >> 20);
    }
    let done = [("direction", "inbound"), ("outcome", "completed")];
    let metrics = server.wait_for_metric(SOON, |m| m.count("postern_connections_total", &done) == 1).unwrap();
    let bytes = |flow| metrics.count("postern_bytes_total", &[("direction", "inbound"), ("flow", flow)]);
    assert_eq!((bytes("up"), bytes("down")), ((UP * MIB) as u64, (DOWN * MIB + 64) as u64));
}

#[test]
fn a_client_that_closes_first_still_gets_what_was_on_its_way() {
    let echo = App::echo().unwrap();
    let (_mesh, server, client) = pair(echo.address());
    for size in [0, 1, 16 * 1024, MIB] {
        let sent: Vec<u8> = Noise(size as u64).take(size).collect();
        let mut stream = TcpStream::connect(client.outbound()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut half = stream.try_clone().unwrap();
        let outgoing = sent.clone();
        let writer = std::thread::spawn(move || {
            half.write_all(&outgoing).unwrap();
            half.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        writer.join().unwrap();
        assert!(back == sent, "{} of {size} bytes came back", back.len());
    }
    let done = [("direction", "inbound"), ("outcome", "completed")];
    server.wait_for_metric(SOON, |m| m.count("postern_connections_total", &done) == 4).unwrap();
}

/// Sends `mib` MiB of noise; gives their SHA-256.
fn send(stream: &mut TcpStream, seed: u64, mib: usize) -> std::io::Result<Vec<u8>> {
    let mut context = Context::new(&SHA256);
    // One block of noise, made different each time by its number: making a gibibyte of it costs more than moving it.
    let mut block: Vec<u8> = Noise(seed).take(MIB).collect();
    for number in 0..mib as u64 {
        for (at, byte) in block.iter_mut().step_by(4093).zip(Noise(number)) {
            *at ^= byte;
        }
        context.update(&block);
        stream.write_all(&block)?;
    }
    Ok(context.finish().as_ref().to_vec())
}

/// The SHA-256 of everything until the end.
fn digest_of(source: &mut impl std::io::Read) -> std::io::Result<Vec<u8>> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(context.finish().as_ref().to_vec()),
            n => context.update(&buffer[..n]),
        }
    }
}

/// Bytes that do not compress and do not repeat, from a seed (SplitMix64).
struct Noise(u64);

impl Iterator for Noise {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Some((mixed.wrapping_mul(0x94d0_49bb_1331_11eb) >> 56) as u8)
    }
}
