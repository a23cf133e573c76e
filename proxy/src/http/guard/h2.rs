//! HTTP/2 frames, counted: what costs this side work and carries no data is paid for out of an allowance. The HTTP/2
//! library bounds resets, CONTINUATION and empty DATA by itself; SETTINGS, PING, PRIORITY and WINDOW_UPDATE it does not.
//! Pure: it sees bytes and the time.

use std::ops::Range;
use std::time::Duration;

/// RFC 9113 §3.4.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// RFC 9113 §4.1.
const FRAME_HEADER: usize = 9;
/// A PING of eight bytes on the connection, flagged ACK (RFC 9113 §6.7).
const FAREWELL_ACK: [u8; FRAME_HEADER] = [0, 0, 8, 6, 1, 0, 0, 0, 0];
/// By which the HTTP/2 library knows the PING that it sends with a GOAWAY.
const FAREWELL: [u8; 8] = [0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];
/// Frames without data that a connection may send ahead of its allowance; gRPC's own pings and window updates of a
/// hundred streams stay far below.
const BURST: f64 = 4_000.0;
/// What a quiet connection is granted anew each second.
const PER_SECOND: f64 = 200.0;
/// Data that moves grants one such frame per this many bytes: window updates belong to data.
const BYTES_PER_FRAME: f64 = 256.0;

/// Follows one connection's frames.
#[derive(Debug)]
pub struct Meter {
    preface_left: usize,
    header: [u8; FRAME_HEADER],
    header_got: usize,
    payload_left: usize,
    farewell: Option<usize>,
    allowance: f64,
    refilled: Duration,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            preface_left: PREFACE.len(),
            header: [0; FRAME_HEADER],
            header_got: 0,
            payload_left: 0,
            farewell: None,
            allowance: BURST,
            refilled: Duration::ZERO,
        }
    }
}

impl Meter {
    /// Reads bytes that came; false where the allowance is used up. `now` is since any fixed point.
    pub fn read(&mut self, all: &[u8], now: impl Fn() -> Duration) -> bool {
        let mut bytes = all;
        self.farewell = None;
        let preface = self.preface_left.min(bytes.len());
        self.preface_left -= preface;
        bytes = &bytes[preface..];
        while !bytes.is_empty() {
            let payload = self.payload_left.min(bytes.len());
            self.payload_left -= payload;
            bytes = &bytes[payload..];
            let header = (FRAME_HEADER - self.header_got).min(bytes.len());
            if self.payload_left > 0 || header == 0 {
                continue;
            }
            self.header[self.header_got..self.header_got + header].copy_from_slice(&bytes[..header]);
            self.header_got += header;
            bytes = &bytes[header..];
            if self.header_got == FRAME_HEADER {
                if !self.frame(&now) {
                    return false;
                }
                if self.header == FAREWELL_ACK && bytes.starts_with(&FAREWELL) {
                    self.farewell = (all.len() - bytes.len()).checked_sub(FRAME_HEADER);
                }
            }
        }
        true
    }

    /// Where in the bytes that were read last the acknowledgement of a farewell stands, if all of it does.
    pub fn farewell(&self) -> Option<Range<usize>> {
        self.farewell.map(|at| at..at + FRAME_HEADER + FAREWELL.len())
    }

    /// Whether the next byte begins a frame.
    pub fn between_frames(&self) -> bool {
        self.preface_left == 0 && self.payload_left == 0 && self.header_got == 0
    }

    /// Notes bytes that were sent.
    pub fn wrote(&mut self, bytes: usize) {
        self.grant(bytes as f64 / BYTES_PER_FRAME);
    }

    fn frame(&mut self, now: &impl Fn() -> Duration) -> bool {
        let [a, b, c, kind, flags, ..] = self.header;
        self.header_got = 0;
        self.payload_left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        /// END_STREAM of DATA, END_HEADERS of HEADERS and CONTINUATION are counted by the library.
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const CONTINUATION: u8 = 9;
        const END_STREAM: u8 = 1;
        match kind {
            HEADERS | CONTINUATION => return true,
            DATA if self.payload_left > 0 || flags & END_STREAM != 0 => {
                self.grant(self.payload_left as f64 / BYTES_PER_FRAME);
                return true;
            }
            _ => {}
        }
        if self.allowance < 1.0 {
            let now = now();
            let passed = now.saturating_sub(self.refilled).as_secs_f64();
            self.refilled = now;
            self.grant(passed * PER_SECOND);
        }
        self.allowance -= 1.0;
        self.allowance >= 0.0
    }

    fn grant(&mut self, frames: f64) {
        self.allowance = (self.allowance + frames).min(BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    fn flood(meter: &mut Meter, frames: usize, now: Duration) -> usize {
        (0..frames).take_while(|_| meter.read(&PING, || now)).count()
    }

    #[test]
    fn a_flood_is_cut_after_the_burst_and_time_grants_a_little() {
        let mut meter = Meter::default();
        assert!(meter.read(PREFACE, || Duration::ZERO));
        assert_eq!(flood(&mut meter, 100_000, Duration::ZERO), BURST as usize);
        let mut meter = Meter::default();
        assert!(meter.read(PREFACE, || Duration::ZERO));
        let mut steady = 0;
        for second in 0..100 {
            steady += flood(&mut meter, PER_SECOND as usize, Duration::from_secs(second));
        }
        assert_eq!(steady, 100 * PER_SECOND as usize, "an honest pace goes on for ever");
    }

    #[test]
    fn frames_are_found_however_the_bytes_come() {
        let data = [&[0, 0, 4, 0, 0, 0, 0, 0, 1][..], b"data"].concat();
        let stream = [PREFACE, &PING, &data, &PING].concat();
        for size in 1..stream.len() {
            let mut meter = Meter::default();
            assert!(stream.chunks(size).all(|chunk| meter.read(chunk, || Duration::ZERO)));
            assert_eq!((meter.payload_left, meter.header_got), (0, 0), "chunks of {size}");
            assert!(meter.allowance < BURST - 1.0 && meter.allowance > BURST - 2.1, "two pings, little data");
        }
    }

    #[test]
    fn what_is_sent_grants_window_updates() {
        let mut meter = Meter::default();
        assert!(meter.read(PREFACE, || Duration::ZERO));
        for _ in 0..100_000 {
            meter.wrote(16 * 1024);
            assert!(meter.read(&PING, || Duration::ZERO));
        }
    }
}
