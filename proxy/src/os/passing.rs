//! File descriptors over a Unix socket of whole messages (`SCM_RIGHTS`): one message, at most one descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, cmsg_space, recvmsg, sendmsg,
};

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 4096;

/// Sends one message, with a descriptor if one is given; the other side gets a duplicate.
pub fn send(socket: impl AsFd, message: &[u8], passed: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let passed: Vec<_> = passed.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&passed)];
    let control = if passed.is_empty() { &[] } else { &rights[..] };
    // A peer that has gone is an error here, not a signal.
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(socket.as_fd().as_raw_fd(), &[IoSlice::new(message)], control, flags, None)?;
    Ok(())
}

/// Receives one message. Empty at the end of the connection. What is longer than [`MAX_MESSAGE`], or carries more than one
/// descriptor, is an error; every descriptor that came is closed again.
pub fn receive(socket: impl AsFd) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut control = vec![0; cmsg_space::<[i32; 1]>()];
    let (length, whole, mut passed) = {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received =
            recvmsg::<UnixAddr>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        let cut = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC;
        // Owned at once, so that none stays open whatever follows.
        let passed: Vec<OwnedFd> = received
            .cmsgs()?
            .filter_map(|message| match message {
                ControlMessageOwned::ScmRights(passed) => Some(passed),
                _ => None,
            })
            .flatten()
            .map(own)
            .collect();
        (received.bytes, !received.flags.intersects(cut), passed)
    };
    if !whole || passed.len() > 1 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message is longer than agreed, or carries too many descriptors",
        ));
    }
    buffer.truncate(length);
    Ok((buffer, passed.pop()))
}

fn own(passed: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for this process, in recvmsg, and nobody else knows of it.
    #[expect(unsafe_code, reason = "the contract above is the kernel's")]
    unsafe {
        OwnedFd::from_raw_fd(passed)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use socket2::{Domain, Socket, Type};

    use super::*;

    fn pair() -> (Socket, Socket) {
        Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap()
    }

    #[test]
    fn a_descriptor_arrives_with_its_message() {
        let (a, b) = pair();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        send(&a, b"one", Some(listener.as_fd())).unwrap();
        send(&a, b"two", None).unwrap();
        drop(a);
        let (message, passed) = receive(&b).unwrap();
        assert_eq!(message, b"one");
        let passed = std::net::TcpListener::from(passed.unwrap());
        assert_eq!(passed.local_addr().unwrap(), listener.local_addr().unwrap());
        let (message, passed) = receive(&b).unwrap();
        assert_eq!((message.as_slice(), passed.is_none()), (&b"two"[..], true));
        assert!(receive(&b).unwrap().0.is_empty(), "the end");
    }

    #[test]
    fn too_long_a_message_or_too_many_descriptors_are_refused_and_leak_nothing() {
        let (a, b) = pair();
        send(&a, &[0; MAX_MESSAGE + 1], None).unwrap();
        assert_eq!(receive(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
        // Other tests of this process open descriptors too, so nothing is counted here: the far end of a
        // passed socket sees its end only once every copy is closed.
        let (passed, mut far) = UnixStream::pair().unwrap();
        for _ in 0..200 {
            let two = [passed.as_raw_fd(), passed.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&two)];
            let flags = MsgFlags::empty();
            sendmsg::<UnixAddr>(a.as_raw_fd(), &[IoSlice::new(b"x")], &rights, flags, None).unwrap();
            assert_eq!(receive(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        drop(passed);
        far.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        assert_eq!(far.read(&mut [0]).expect("descriptors were left open"), 0);
    }
}
