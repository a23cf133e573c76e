//! HTTP/1 from a hostile peer: what two readers could read differently is refused, and what is carried on has one spelling.

mod introduced;
mod refused;
mod rewritten;
mod slow;
