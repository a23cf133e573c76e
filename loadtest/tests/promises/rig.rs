//! The load rig tells the truth about servers that know nothing of us: OpenSSL, nginx, programs that stall or burn.

mod command;
mod foreign;
mod truth;
