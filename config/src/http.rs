//! The small grammars of the HTTP data plane: paths, authorities, client identity, trace context, the PROXY protocol.
//!
//! All are strict: what two readers could read differently is an error here, so that policy, log and app see the same
//! request. They hold no state and touch no socket; time and random bytes are arguments.

pub mod authority;
pub mod path;
pub mod proxy_protocol;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod xfcc;
