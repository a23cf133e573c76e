//! W3C Trace Context: `traceparent` is continued where a caller sent one and made where none came (Level 1 §3).

/// The length of the header's value, in bytes.
pub const LENGTH: usize = 55;
/// The flag that says that the caller may have recorded this trace.
const SAMPLED: u8 = 0b01;
/// What is passed on: `sampled`, and Level 2's `random`, which says something of the trace id. Level 1 §3.2.2.5.2 has
/// every other bit set to zero.
const KNOWN_FLAGS: u8 = 0b11;

/// One `traceparent`. Neither id is all zero: the constructors see to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace_id: [u8; 16],
    parent_id: [u8; 8],
    flags: u8,
}

/// Why a text is no `traceparent`. It is then ignored, with its `tracestate`, and a new trace begins (§4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// Too short, too long for version 00, or without a `-` where one must stand.
    #[error("it is not `version-traceid-parentid-flags`")]
    Shape,
    /// Something else than lower-case hexadecimal digits.
    #[error("it holds something else than lower-case hexadecimal digits")]
    Digit,
    /// Version `ff`.
    #[error("its version is ff")]
    Version,
    /// An id of zeros.
    #[error("one of its ids is zero")]
    Zero,
}

impl TraceParent {
    /// Reads a header's value. Of a version above 00 the parts are read that this version knows (§3.2.4).
    pub fn parse(text: &[u8]) -> Result<Self, TraceError> {
        let Some((head, rest)) = text.split_at_checked(LENGTH) else { return Err(TraceError::Shape) };
        if [head[2], head[35], head[52]] != *b"---" {
            return Err(TraceError::Shape);
        }
        let [version] = hex(&head[..2])?;
        match (version, rest) {
            (0xff, _) => return Err(TraceError::Version),
            (_, []) | (1.., [b'-', ..]) => {}
            _ => return Err(TraceError::Shape),
        }
        let (trace_id, parent_id, [flags]) = (hex(&head[3..35])?, hex(&head[36..52])?, hex(&head[53..])?);
        if trace_id == [0; 16] || parent_id == [0; 8] {
            return Err(TraceError::Zero);
        }
        Ok(Self { trace_id, parent_id, flags })
    }

    /// The `traceparent` of a request: `None` without one, with more than one, or with one that is invalid.
    pub fn of<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut lines = lines.into_iter();
        match (lines.next(), lines.next()) {
            (Some(line), None) => Self::parse(line).ok(),
            _ => None,
        }
    }

    /// A new trace, out of random bytes.
    pub fn new(trace_id: [u8; 16], parent_id: [u8; 8], sampled: bool) -> Self {
        let flags = if sampled { SAMPLED } else { 0 };
        Self { trace_id: nonzero(trace_id), parent_id: nonzero(parent_id), flags }
    }

    /// The same trace one hop further: `parent_id`, out of random bytes, is the id of the hop's own span.
    pub fn child(self, parent_id: [u8; 8]) -> Self {
        Self { parent_id: nonzero(parent_id), flags: self.flags & KNOWN_FLAGS, ..self }
    }

    /// The trace that this request belongs to.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The span within it that sent this request.
    pub fn parent_id(&self) -> [u8; 8] {
        self.parent_id
    }

    /// Whether the caller may have recorded its part.
    pub fn sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The header's value, in version 00: visible ASCII.
    pub fn to_bytes(&self) -> [u8; LENGTH] {
        let mut out = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut out[3..35], &self.trace_id);
        write_hex(&mut out[36..52], &self.parent_id);
        write_hex(&mut out[53..], &[self.flags]);
        out
    }
}

/// Zero is no id; it comes up once in 2⁶⁴ tries.
fn nonzero<const N: usize>(mut id: [u8; N]) -> [u8; N] {
    if id == [0; N] {
        id[N - 1] = 1;
    }
    id
}

fn hex<const N: usize>(text: &[u8]) -> Result<[u8; N], TraceError> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(TraceError::Digit),
    };
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(out)
}

fn write_hex(out: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.as_chunks_mut().0.iter_mut().zip(bytes) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
}
