//! What each fuzz target does with its input: shared by the targets and by the test that replays their corpora.

use std::time::Duration;

use super::h1::{Flaw, Framing, Place, Step};
use super::h2::Meter;

/// However a stream is cut into pieces, the same bytes pass; and each head that passes is one head to another parser too.
pub(crate) fn http1(data: &[u8]) {
    let whole = feed(data, data.len().max(1));
    for size in [1, 2, 3, 7, 64] {
        assert_eq!(feed(data, size), whole, "pieces of {size}");
    }
}

/// What passed in all, where it ended, and after which bytes it waits.
fn feed(data: &[u8], size: usize) -> (Vec<u8>, Place) {
    let (mut framing, mut pending, mut passed) = (Framing::default(), Vec::new(), Vec::new());
    for piece in data.chunks(size) {
        pending.extend_from_slice(piece);
        loop {
            let before = framing.place();
            match framing.step(&pending) {
                Step::Pass(bytes) => {
                    assert!(bytes > 0 && bytes <= pending.len(), "{bytes} of {} pass", pending.len());
                    if matches!(before, Place::Start | Place::Head(_)) && pending.len() < 32 * 1024 {
                        check_head(&pending[..bytes]);
                    }
                    passed.extend(pending.drain(..bytes));
                }
                Step::More | Step::Hold => break,
                // Of two flaws the pieces may say which is seen first.
                Step::Refuse(_) => return (passed, Place::Refused(Flaw(""))),
            }
        }
    }
    // How far a head was searched depends on the pieces; that it was not whole does not.
    let place = match framing.place() {
        Place::Head(_) => Place::Start,
        place => place,
    };
    (passed, place)
}

fn check_head(head: &[u8]) {
    if head == b"\r\n" {
        return;
    }
    let mut fields = [httparse::EMPTY_HEADER; 2048];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) => assert_eq!(length, head.len()),
        Err(httparse::Error::TooManyHeaders) => {}
        other => panic!("{other:?} of {}", head.escape_ascii()),
    }
}

/// However a stream is cut into pieces, its frames count the same.
pub(crate) fn http2(data: &[u8]) {
    let read = |size: usize| {
        let mut meter = Meter::default();
        let all = data.chunks(size).all(|piece| meter.read(piece, || Duration::ZERO));
        (all, all.then(|| format!("{meter:?}")))
    };
    let whole = read(data.len().max(1));
    for size in [1, 2, 3, 8, 10, 64] {
        assert_eq!(read(size), whole, "pieces of {size}");
    }
}
