//! Load by h2load at a steady rate, in the background, and its report.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use crate::programs::program;

/// A running h2load.
pub(crate) struct H2load(Child);

/// What it says at its end.
#[derive(Debug)]
pub(crate) struct Report {
    /// Requests that were answered.
    pub(crate) done: u64,
    /// Those that came to nothing, and those whose status was not 2xx.
    failed: u64,
    /// The report itself.
    pub(crate) text: String,
}

impl H2load {
    /// `clients` connections, each with `rate` requests a second, for `seconds`.
    pub(crate) fn start(url: &str, clients: u32, rate: u32, seconds: u32, options: &[&str]) -> Self {
        let mut command = Command::new(program("h2load", "nghttp2-client"));
        command.args(["--duration", &seconds.to_string(), "--clients", &clients.to_string()]);
        command.args(["--rps", &rate.to_string(), "--max-concurrent-streams=20"]).args(options).arg(url);
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("h2load starts"))
    }

    /// Whether it still sends.
    pub(crate) fn runs(&mut self) -> bool {
        self.0.try_wait().expect("it is ours").is_none()
    }

    /// Waits for its end.
    pub(crate) fn report(mut self) -> Report {
        let mut text = String::new();
        self.0.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
        assert!(self.0.wait().expect("it is ours").success(), "{text}");
        let number = |line: &str, word: &str| {
            let line =
                text.lines().find(|l| l.starts_with(line)).unwrap_or_else(|| panic!("no {line}\n{text}"));
            let words: Vec<&str> = line.split([' ', ',']).filter(|w| !w.is_empty()).collect();
            let at = words.iter().position(|w| *w == word).unwrap_or_else(|| panic!("no {word}\n{text}"));
            words[at - 1].parse::<u64>().expect("a number")
        };
        let broken = ["failed", "errored", "timeout"].map(|word| number("requests:", word));
        let refused = ["3xx", "4xx", "5xx"].map(|word| number("status codes:", word));
        let failed = broken.iter().chain(&refused).sum();
        Report { done: number("requests:", "done"), failed, text }
    }
}

impl Report {
    /// Requests were answered, and all of them well.
    #[track_caller]
    pub(crate) fn none_failed(&self) {
        assert!(self.done > 0 && self.failed == 0, "{}", self.text);
    }
}

impl Drop for H2load {
    fn drop(&mut self) {
        // Nothing happens to one that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
