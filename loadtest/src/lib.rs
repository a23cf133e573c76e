//! Postern as a whole: real processes on loopback, for end-to-end tests and for `postern demo`.
//!
//! Start with [`mesh`]: it runs the two binaries and reads what they say about themselves (ready line, log, metrics).
//! [`drive`] and [`measure`] are the load rig: any server, any of the questions in [`scenario`], and [`compare`] asks several
//! [`peers`] in turn; [`load`] is the steady
//! traffic of tests, [`fleet`] is thousands of proxies as the control plane sees them, [`app`] is what
//! stands behind them where no foreign program shall.
//! Nothing here imports a plane: what a process does not show to an operator, no test may rely on.

pub mod app;
mod believe;
pub mod compare;
pub mod demo;
pub mod drive;
pub mod fleet;
pub mod http;
pub mod load;
pub mod measure;
pub mod mesh;
pub mod peers;
pub mod report;
pub mod run;
pub mod scenario;
