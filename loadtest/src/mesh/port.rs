//! Ports for what must be told its port before it is started.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result};

/// Below those that the kernel gives to connections and to listeners without a wish (ip(7), `ip_local_port_range`).
const FIRST: u16 = 16_384;
const COUNT: u16 = 16_384;

/// A loopback port on which nobody listens. It is none of those that the kernel gives away by itself, so that nobody has it when it
/// is used a moment, or a restart, later.
pub fn free_port() -> Result<SocketAddr> {
    // Processes that look at the same time begin in different places.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id().wrapping_mul(61);
    for _ in 0..COUNT {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + (start.wrapping_add(step) % u32::from(COUNT)) as u16;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    None.context("no free loopback port")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_pass_over_what_is_taken_and_are_none_that_the_kernel_gives_away() {
        let first = free_port().unwrap();
        let _taken = TcpListener::bind(first).unwrap();
        let ports: Vec<_> = (0..u32::from(COUNT)).map(|_| free_port().unwrap()).collect();
        assert!(!ports.contains(&first));
        assert!(ports[0] != ports[1]);
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let least: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        assert!(ports.iter().all(|a| a.port() < least), "{least}");
    }
}
