//! What the guard lets through, and in which pieces.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::h1::{Flaw, Framing, Place, Step};
use super::{Guard, h2};
use crate::http::Version;
use crate::worker::open::Registry;

/// Feeds `bytes` in pieces of `size`: what went on, and where the framing stands at the end.
fn feed(bytes: &[u8], size: usize) -> (Vec<u8>, Place) {
    let (mut framing, mut pending, mut passed) = (Framing::default(), Vec::new(), Vec::new());
    for piece in bytes.chunks(size) {
        pending.extend_from_slice(piece);
        loop {
            match framing.step(&pending) {
                Step::Pass(n) => passed.extend(pending.drain(..n)),
                Step::More | Step::Hold => break,
                Step::Refuse(flaw) => return (passed, Place::Refused(flaw)),
            }
        }
    }
    (passed, framing.place())
}

#[test]
fn good_requests_pass_whole_however_they_come() {
    let requests: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\nGET / HTTP/1.0\r\n\r\n",
        b"POST /a?b=c HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=\"y\"\r\nhello\r\nA\r\n0123456789\r\n0\r\nx: y\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nX: \xc3\xa9\t.\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    ];
    for request in requests {
        for size in 1..=request.len() {
            assert_eq!(feed(request, size), (request.to_vec(), Place::Start), "pieces of {size}");
        }
    }
}

/// RFC 9110 §5.6.2.
#[test]
fn a_name_is_made_of_the_bytes_of_a_token_and_no_others() {
    for byte in 0..=u8::MAX {
        let head = [&b"GET / HTTP/1.1\r\nHost: a\r\nx"[..], &[byte], b"x: y\r\n\r\n"].concat();
        // A colon ends the name earlier.
        let token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:".contains(&byte);
        assert_eq!(feed(&head, head.len()).1 == Place::Start, token, "{byte:#04x}");
    }
}

#[test]
fn what_two_readers_could_read_differently_is_refused_however_it_comes() {
    let head = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n").into_bytes();
    let chunked = |body: &str| [head("Transfer-Encoding: chunked"), body.as_bytes().to_vec()].concat();
    let requests = [
        head("Content-Length: 5\r\nTransfer-Encoding: chunked"),
        head("Transfer-Encoding: chunked\r\nContent-Length: 5"),
        head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        head("Transfer-Encoding: ,chunked"),
        head("Transfer-Encoding: chunked, identity"),
        head("Transfer-Encoding: xchunked"),
        head("Transfer-Encoding: \x0bchunked"),
        head("Transfer-Encoding: identity"),
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
        head("Content-Length: 5\r\nContent-Length: 5"),
        head("Content-Length: 5, 5"),
        head("Content-Length: +5"),
        head("Content-Length: 0x5"),
        head("Content-Length: -5"),
        head("Content-Length: 5 5"),
        head("Content-Length: "),
        head("Content-Length: 12345678901234567890"),
        b"GET / HTTP/1.1\nHost: a\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n".to_vec(),
        head(" folded: x"),
        head("X: a\r\n folded"),
        head("X : a"),
        head(": a"),
        head("X\0Y: a"),
        head("X: a\0b"),
        head("no colon"),
        b"get / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"GET / HTTP/1.2\r\nHost: a\r\n\r\n".to_vec(),
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n".to_vec(),
        b"GET /\r\n\r\n".to_vec(),
        chunked("5 \r\nhello\r\n0\r\n\r\n"),
        chunked("5\nhello\r\n0\r\n\r\n"),
        chunked("5;a\nb\r\nhello\r\n0\r\n\r\n"),
        chunked("0x5\r\nhello\r\n0\r\n\r\n"),
        chunked("-5\r\nhello\r\n0\r\n\r\n"),
        chunked("ffffffffffffffff\r\nhello"),
        chunked("5\r\nhelloX\r\n0\r\n\r\n"),
        chunked("5\r\nhello\n0\r\n\r\n"),
        chunked("0\r\nbad trailer\r\n\r\n"),
        chunked("0\r\nx: y\n\r\n"),
        chunked(&format!("5;{}\r\nhello", "x".repeat(1000))),
    ];
    for request in requests {
        for size in [1, 2, 7, request.len()] {
            let (_, place) = feed(&request, size);
            let shown = request.escape_ascii();
            assert!(matches!(place, Place::Refused(Flaw(_))), "pieces of {size} of {shown}: {place:?}");
        }
    }
}

#[test]
fn what_follows_a_request_to_switch_waits_for_its_answer() {
    let switch = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let (passed, place) = feed(&[&switch[..], b"early data"].concat(), 3);
    assert_eq!((passed, place), (switch.to_vec(), Place::Held));
    let mut framing = Framing::default();
    assert_eq!(framing.step(switch), Step::Pass(switch.len()));
    assert_eq!(framing.step(b"early"), Step::Hold);
    framing.release(true);
    assert_eq!(framing.step(b"early"), Step::Pass(5));
}

#[test]
fn a_head_without_an_end_goes_on_as_far_as_the_library_waits_and_no_further() {
    let line = b"X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n";
    let endless = [&b"GET / HTTP/1.1\r\n"[..], &line.repeat(2000)].concat();
    for size in [1000, 4096, 16 * 1024] {
        let (passed, place) = feed(&endless, size);
        assert_eq!(place, Place::TooLong, "pieces of {size}");
        assert!((super::h1::HEAD_LIMIT..super::h1::HEAD_LIMIT + size).contains(&passed.len()));
    }
}

/// However much of a head comes at once: the library reads line feeds alone as ends of lines, and would find one.
#[test]
fn line_feeds_alone_are_refused_in_a_head_of_any_length() {
    let filler = "a".repeat(40_000);
    for head in [
        format!("POST / HTTP/1.1\nHost: a\nContent-Length: 40000\n\n{filler}"),
        format!("GET / HTTP/1.1\r\nX: {filler}\n\n"),
    ] {
        assert!(matches!(Framing::default().step(head.as_bytes()), Step::Refuse(_)));
    }
}

/// The acknowledgement of a GOAWAY, as the HTTP/2 library's client sends it.
const FAREWELL_ACK: &[u8] = &[0, 0, 8, 6, 1, 0, 0, 0, 0, 0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];
/// A frame that begins a stream; what is in it does not matter here.
const HEADERS: &[u8] = &[0, 0, 1, 1, 5, 0, 0, 0, 3, 0x82];

/// What has come out behind a guard of HTTP/2 when `pieces` have come in one by one and nothing more comes.
async fn through(pieces: &[&[u8]]) -> Vec<u8> {
    /// Far longer than anything is kept back.
    const NOTHING_MORE: Duration = Duration::from_secs(10);
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let open = Registry::default().enter(None);
    let mut guard = Guard::new(near, Version::Http2, open.pulse(), Rc::default(), Duration::from_secs(1));
    let (mut all, mut some) = (Vec::new(), [0; 1024]);
    for piece in [&[h2::PREFACE], pieces].concat() {
        far.write_all(piece).await.unwrap();
        // What can be had at once.
        while let Ok(Ok(n)) = tokio::time::timeout(Duration::ZERO, guard.read(&mut some)).await {
            all.extend_from_slice(&some[..n]);
        }
    }
    while let Ok(Ok(n)) = tokio::time::timeout(NOTHING_MORE, guard.read(&mut some)).await {
        all.extend_from_slice(&some[..n]);
    }
    all.split_off(h2::PREFACE.len())
}

#[tokio::test(start_paused = true)]
async fn requests_behind_the_acknowledgement_of_a_goaway_go_before_it() {
    let late = [HEADERS, FAREWELL_ACK].concat();
    assert_eq!(through(&[&[FAREWELL_ACK, HEADERS].concat()]).await, late, "in one piece");
    assert_eq!(through(&[FAREWELL_ACK, HEADERS]).await, late, "a moment later");
    let torn = [FAREWELL_ACK, &HEADERS[..4]].concat();
    assert_eq!(through(&[&torn, &HEADERS[4..]]).await, late, "torn");
    assert_eq!(through(&[FAREWELL_ACK]).await, FAREWELL_ACK, "nothing comes behind it");
    let twice = [FAREWELL_ACK, FAREWELL_ACK, HEADERS].concat();
    assert_eq!(through(&[&twice]).await.len(), twice.len(), "nothing is lost");
}

#[tokio::test(start_paused = true)]
async fn bytes_of_a_body_that_look_like_it_stay_where_they_are() {
    let data = [&[0, 0, 17, 0, 0, 0, 0, 0, 1][..], FAREWELL_ACK].concat();
    let stream = [&data[..], HEADERS].concat();
    for cut in 1..stream.len() {
        assert_eq!(through(&[&stream[..cut], &stream[cut..]]).await, stream, "cut at {cut}");
    }
}
