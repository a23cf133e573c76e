//! Who is at the other end of a Unix socket: the kernel knows (`SO_PEERCRED`), and only this process's own user and root count.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt};

/// The process at the other end, as it was when it connected or began to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// Its process; may have been given to another one since.
    pub pid: i32,
}

/// Why the other end is not talked to.
#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    /// Another user's process.
    #[error(
        "process {pid} of user {uid} is at the other end; only this process's own user and root are talked to"
    )]
    Stranger {
        /// Its user.
        uid: u32,
        /// Its process.
        pid: i32,
    },
    /// The kernel does not say.
    #[error("the kernel does not say who is at the other end: {0}")]
    Unknown(#[from] io::Error),
}

impl Caller {
    /// Who is at the other end of `socket`, if it is this process's own user or root.
    pub fn trusted(socket: impl AsFd) -> Result<Self, CallerError> {
        let peer = getsockopt(&socket, sockopt::PeerCredentials).map_err(io::Error::from)?;
        let caller = Self { uid: peer.uid(), pid: peer.pid() };
        if caller.is_trusted_by(nix::unistd::geteuid().as_raw()) {
            Ok(caller)
        } else {
            Err(CallerError::Stranger { uid: caller.uid, pid: caller.pid })
        }
    }

    fn is_trusted_by(self, own: u32) -> bool {
        self.uid == own || self.uid == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_user_and_root_are_trusted_and_nobody_else() {
        let caller = |uid| Caller { uid, pid: 1 };
        assert!(caller(1000).is_trusted_by(1000));
        assert!(caller(0).is_trusted_by(1000));
        assert!(!caller(1001).is_trusted_by(1000));
        assert!(!caller(1000).is_trusted_by(0));
    }

    #[test]
    fn the_kernel_says_who_it_is() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        let caller = Caller::trusted(&a).unwrap();
        assert_eq!(caller.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(caller.pid, std::process::id().cast_signed());
    }
}
