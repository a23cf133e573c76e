//! `postern-loadtest`: placeholder until the demo stands.
fn main() {}
