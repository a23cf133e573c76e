//! What is measured: latencies in HDR histograms, and what the server's processes used, by pid.

mod histogram;
mod server;

pub use histogram::{Histogram, Latency};
pub(crate) use server::open_files;
pub use server::{Cost, Meter, Usage};
