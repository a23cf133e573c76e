//! Probes against callers who would keep them out.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use super::*;

#[test]
fn callers_who_hold_every_place_do_not_keep_a_probe_out() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let answer = |_| std::future::ready(text(StatusCode::OK, "ok\n"));
        let serving = tokio::task::spawn_local(serve(listener, answer, stop.clone()));
        let mut silent = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let probe = async {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            tcp.write_all(b"GET /livez HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            tcp.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer =
            tokio::time::timeout(HEAD_TIMEOUT / 2, probe).await.expect("the probe waits for a place");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        stop.cancel();
        serving.await.unwrap().unwrap();
    });
}
