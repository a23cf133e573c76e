//! HTTP as this proxy speaks it. The only place, with `admin` and the control plane's client, that names hyper.

pub mod fetch;
