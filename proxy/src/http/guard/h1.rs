//! HTTP/1 framing, strictly read (RFC 9112): finds where each request's head and body end, and refuses whatever two
//! implementations could read differently. Pure: it sees bytes and says how many of them may go on.

use std::fmt;

use memchr::{memchr, memchr_iter, memchr2};

/// A head that has no end within this size goes on as it is: the HTTP library has the same limit and answers 431.
pub const HEAD_LIMIT: usize = 32 * 1024;
/// A chunk's size line with its extensions.
const CHUNK_LINE_LIMIT: usize = 256;
/// All trailers of one body together.
const TRAILERS_LIMIT: usize = 8 * 1024;
/// 16 hexadecimal digits could overflow a u64's use as a length elsewhere; 15 are more than a petabyte.
const CHUNK_SIZE_DIGITS: usize = 15;

/// What may be done with the bytes at hand.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// These many may go on.
    Pass(usize),
    /// More must come before that can be said.
    More,
    /// They wait until the answer to the request before them is known.
    Hold,
    /// They are no request that means one thing only.
    Refuse(Flaw),
}

/// What is wrong with a request's framing; the text is for the log and holds no byte of the peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flaw(pub &'static str);

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Where a connection stands.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before or in a head; so far this many of its bytes were searched for its end.
    #[default]
    Start,
    /// In a head of which some bytes have come.
    Head(usize),
    /// In a body of known length.
    Body(u64),
    /// In a chunk's size line.
    ChunkSize,
    /// In a chunk's data.
    ChunkData(u64),
    /// After a chunk's data.
    ChunkEnd,
    /// After the last chunk; this many bytes of trailers were seen.
    Trailers(usize),
    /// Behind so much of a head that the library will not wait for its end.
    TooLong,
    /// Behind a request to become a tunnel.
    Held,
    /// Nothing is read as HTTP any more.
    Tunnel,
    /// Behind a flaw.
    Refused(Flaw),
}

/// Follows one connection's requests.
#[derive(Debug, Default)]
pub struct Framing {
    place: Place,
}

impl Framing {
    /// Where it stands.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The answer to the request behind which bytes were held: whether they are a tunnel's or the next request.
    pub fn release(&mut self, tunnel: bool) {
        if self.place == Place::Held {
            self.place = if tunnel { Place::Tunnel } else { Place::Start };
        }
    }

    /// Reads on at the first of `bytes` that has not gone on yet.
    pub fn step(&mut self, bytes: &[u8]) -> Step {
        match self.advance(bytes) {
            Ok(step) => step,
            Err(flaw) => {
                self.place = Place::Refused(flaw);
                Step::Refuse(flaw)
            }
        }
    }

    fn advance(&mut self, bytes: &[u8]) -> Result<Step, Flaw> {
        if bytes.is_empty() {
            return Ok(Step::More);
        }
        match self.place {
            Place::Start | Place::Head(_) => self.head(bytes),
            Place::Body(left) => Ok(self.data(bytes, left, Place::Body, Place::Start)),
            Place::ChunkData(left) => Ok(self.data(bytes, left, Place::ChunkData, Place::ChunkEnd)),
            Place::ChunkSize => self.chunk_size(bytes),
            Place::ChunkEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    self.place = Place::ChunkSize;
                    Ok(Step::Pass(2))
                }
                [b'\r'] => Ok(Step::More),
                _ => Err(Flaw("a chunk does not end where its size says")),
            },
            Place::Trailers(seen) => self.trailers(bytes, seen),
            Place::Held | Place::TooLong => Ok(Step::Hold),
            Place::Tunnel => Ok(Step::Pass(bytes.len())),
            Place::Refused(flaw) => Err(flaw),
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<Step, Flaw> {
        // One empty line before a request is tolerated, as RFC 9112 §2.2 wishes.
        match (self.place, bytes) {
            (Place::Start, [b'\r']) => return Ok(Step::More),
            (Place::Start, [b'\r', b'\n', ..]) => {
                self.place = Place::Head(0);
                return Ok(Step::Pass(2));
            }
            _ => {}
        }
        let searched = if let Place::Head(searched) = self.place { searched } else { 0 };
        let mut lines = memchr_iter(b'\n', &bytes[searched..]).map(|at| searched + at + 1);
        match lines.clone().find(|end| bytes[..*end].ends_with(b"\r\n\r\n")) {
            Some(end) => {
                self.place = read_head(&bytes[..end])?;
                Ok(Step::Pass(end))
            }
            None => {
                // Told early, a sender of line feeds alone does not wait for an end that never comes.
                if lines.any(|end| !bytes[..end].ends_with(b"\r\n")) {
                    return Err(Flaw("a line of the head ends without a carriage return"));
                }
                if bytes.len() >= HEAD_LIMIT {
                    // No reader finds an end in it, not even one that takes line feeds alone for ends of lines.
                    self.place = Place::TooLong;
                    return Ok(Step::Pass(bytes.len()));
                }
                self.place = Place::Head(bytes.len());
                Ok(Step::More)
            }
        }
    }

    fn data(&mut self, bytes: &[u8], left: u64, more: fn(u64) -> Place, then: Place) -> Step {
        let pass = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let left = left - pass as u64;
        self.place = if left == 0 { then } else { more(left) };
        Step::Pass(pass)
    }

    fn chunk_size(&mut self, bytes: &[u8]) -> Result<Step, Flaw> {
        let Some(end) = line_end(bytes, CHUNK_LINE_LIMIT, "a chunk's size line is too long")? else {
            return Ok(Step::More);
        };
        let line = &bytes[..end];
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let size = std::str::from_utf8(&line[..digits]).ok().and_then(|t| u64::from_str_radix(t, 16).ok());
        let Some(size) = size.filter(|_| digits <= CHUNK_SIZE_DIGITS) else {
            return Err(Flaw("a chunk's size is no hexadecimal number"));
        };
        // RFC 9112 §7.1.1; the space that some send before the end of the line stays an error.
        let extension = &line[digits..];
        if !(extension.is_empty() || extension[0] == b';') || extension.iter().any(|b| is_control(*b)) {
            return Err(Flaw("something other than an extension follows a chunk's size"));
        }
        self.place = if size == 0 { Place::Trailers(0) } else { Place::ChunkData(size) };
        Ok(Step::Pass(end + 2))
    }

    fn trailers(&mut self, bytes: &[u8], seen: usize) -> Result<Step, Flaw> {
        let Some(end) = line_end(bytes, TRAILERS_LIMIT, "a trailer is too long")? else {
            return Ok(Step::More);
        };
        let seen = seen + end + 2;
        if seen > TRAILERS_LIMIT {
            return Err(Flaw("the trailers are too long"));
        }
        if end == 0 {
            self.place = Place::Start;
        } else {
            field(&bytes[..end])?;
            self.place = Place::Trailers(seen);
        }
        Ok(Step::Pass(end + 2))
    }
}

/// Where the line ends that `bytes` begin with; none while its end has not come.
fn line_end(bytes: &[u8], limit: usize, too_long: &'static str) -> Result<Option<usize>, Flaw> {
    match memchr(b'\n', &bytes[..bytes.len().min(limit + 2)]) {
        Some(at) if at > 0 && bytes[at - 1] == b'\r' => Ok(Some(at - 1)),
        Some(_) => Err(Flaw("a line ends without a carriage return")),
        // The line's own carriage return may have come.
        None if bytes.len() > limit + 1 => Err(Flaw(too_long)),
        None => Ok(None),
    }
}

/// What a request's head says about what follows it.
#[derive(Default)]
struct Follows {
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    connection_upgrade: bool,
}

/// Reads a whole head, its empty line included.
fn read_head(head: &[u8]) -> Result<Place, Flaw> {
    let mut lines = Lines(&head[..head.len() - 2]);
    let (connect, http_11) = request_line(lines.next().unwrap_or(Err(Flaw("the head is empty")))?)?;
    let mut follows = Follows::default();
    for line in lines {
        let (name, value) = field(line?)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            if follows.length.is_some() {
                return Err(Flaw("more than one content-length"));
            }
            follows.length = Some(content_length(value)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if follows.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Flaw("a transfer-encoding other than `chunked`, once"));
            }
            if !http_11 {
                return Err(Flaw("transfer-encoding in HTTP/1.0"));
            }
            follows.chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            follows.upgrade |= !names(value, b"h2c");
        } else if name.eq_ignore_ascii_case(b"connection") {
            follows.connection_upgrade |= names(value, b"upgrade");
        }
    }
    match follows {
        Follows { length: Some(_), chunked: true, .. } => {
            Err(Flaw("both content-length and transfer-encoding"))
        }
        Follows { chunked: true, .. } => Ok(Place::ChunkSize),
        Follows { length: Some(length), .. } if length > 0 => Ok(Place::Body(length)),
        Follows { upgrade: true, connection_upgrade: true, .. } => Ok(Place::Held),
        _ if connect => Ok(Place::Held),
        _ => Ok(Place::Start),
    }
}

/// Whether the method is CONNECT, and whether this is HTTP/1.1.
fn request_line(line: &[u8]) -> Result<(bool, bool), Flaw> {
    let mut parts = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Flaw("the request line is not method, target and version"));
    };
    if method.is_empty() || !method.iter().all(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_')) {
        return Err(Flaw("the method is not written in capital letters"));
    }
    if target.is_empty() || has(target, |b| !b.is_ascii_graphic() || matches!(b, b'#' | b'\\')) {
        return Err(Flaw("the target has a byte that no URI has"));
    }
    match version {
        b"HTTP/1.1" => Ok((method == b"CONNECT", true)),
        b"HTTP/1.0" => Ok((method == b"CONNECT", false)),
        _ => Err(Flaw("the version is neither HTTP/1.0 nor HTTP/1.1")),
    }
}

/// A field line's name and value, white space around the value removed.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Flaw> {
    let Some(colon) = memchr(b':', line) else {
        return Err(Flaw("a header line without a colon"));
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || has(name, |b| !is_token(b)) {
        return Err(Flaw("a header name with a byte that no name has, or a folded line"));
    }
    if has(value, is_control) {
        return Err(Flaw("a control character in a header's value"));
    }
    Ok((name, value.trim_ascii()))
}

fn content_length(value: &[u8]) -> Result<u64, Flaw> {
    let digits = !value.is_empty() && value.len() < 19 && value.iter().all(u8::is_ascii_digit);
    let number = digits.then(|| std::str::from_utf8(value).ok()?.parse().ok()).flatten();
    number.ok_or(Flaw("a content-length that is not one plain number"))
}

/// Whether a comma-separated list holds `word`, in any case.
fn names(list: &[u8], word: &[u8]) -> bool {
    list.split(|b| *b == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(word))
}

/// Whether one of the bytes is such a one. It looks at all of them, for honest ones have none: without a way out, a loop is a few
/// vector instructions.
fn has(bytes: &[u8], such: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(false, |found, byte| found | such(*byte))
}

fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

/// Lines that each end in CRLF.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Flaw>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = memchr2(b'\r', b'\n', self.0)?;
        let line = &self.0[..end];
        match self.0[end..].strip_prefix(b"\r\n") {
            Some(rest) => {
                self.0 = rest;
                Some(Ok(line))
            }
            None => {
                self.0 = &[];
                Some(Err(Flaw("a carriage return or line feed by itself")))
            }
        }
    }
}
