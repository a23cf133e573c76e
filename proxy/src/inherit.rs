//! Listening sockets that this process need not bind: systemd or its predecessor has bound them.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

/// What a socket is for. One that peers connect to is not given to the app's side, nor the other way round: who waits in its
/// queue would be taken for somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the words say it")]
pub enum Role {
    Inbound,
    Outbound,
    Gateway,
    Metrics,
    Admin,
}

/// Sockets that wait for a listener to claim them.
#[derive(Debug, Default)]
pub struct Inherited(Vec<Given>);

#[derive(Debug)]
struct Given {
    socket: Socket,
    at: SocketAddr,
    /// None where whoever gave it does not know: then the configuration says.
    role: Option<Role>,
}

impl Inherited {
    /// Takes a socket, if it is a listening TCP socket; says what is wrong otherwise.
    pub fn add(&mut self, fd: OwnedFd, role: Option<Role>) -> Result<SocketAddr, String> {
        let socket = Socket::from(fd);
        let read = |error: std::io::Error| format!("it is no socket: {error}");
        let at = socket.local_addr().map_err(read)?.as_socket();
        let listens = socket.is_listener().map_err(read)? && socket.r#type().map_err(read)? == Type::STREAM;
        let Some(at) = at.filter(|_| listens) else {
            return Err("it is no listening TCP socket".to_owned());
        };
        socket.set_nonblocking(true).map_err(|e| e.to_string())?;
        self.0.push(Given { socket, at, role });
        Ok(at)
    }

    /// The socket for a listener at `wanted`, if one was given. A free port (`:0`) is always bound anew.
    pub fn claim(&mut self, role: Role, wanted: SocketAddr) -> Option<TcpListener> {
        let fits = |given: &Given| given.role.is_none_or(|r| r == role) && given.serves(wanted);
        let index = self.0.iter().position(fits)?;
        Some(self.0.swap_remove(index).socket.into())
    }

    /// Whether nothing was passed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The addresses that nobody has claimed.
    pub fn unclaimed(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|given| given.at)
    }
}

impl Given {
    /// Its address is the wanted one; or all addresses were wanted, and it is the IPv6 socket that takes IPv4 as well,
    /// which is how systemd binds a bare port.
    fn serves(&self, wanted: SocketAddr) -> bool {
        let both = || {
            let unspecified = self.at.ip().is_unspecified() && wanted.ip().is_unspecified();
            let dual = self.socket.domain().is_ok_and(|d| d == Domain::IPV6)
                && self.socket.only_v6().is_ok_and(|only| !only);
            unspecified && dual && self.at.port() == wanted.port()
        };
        wanted.port() != 0 && (self.at == wanted || both())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inherited(listeners: &[(&TcpListener, Option<Role>)]) -> Inherited {
        let mut inherited = Inherited::default();
        for (listener, role) in listeners {
            inherited.add(listener.try_clone().unwrap().into(), *role).unwrap();
        }
        inherited
    }

    #[test]
    fn a_socket_goes_to_the_listener_of_its_address_and_role_once() {
        let (a, b) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let (at_a, at_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
        let mut inherited = inherited(&[(&a, Some(Role::Inbound)), (&b, None)]);
        assert!(inherited.claim(Role::Outbound, at_a).is_none(), "another role");
        assert!(inherited.claim(Role::Inbound, "127.0.0.1:0".parse().unwrap()).is_none());
        assert!(inherited.claim(Role::Inbound, "127.0.0.2:1".parse().unwrap()).is_none());
        assert_eq!(inherited.claim(Role::Inbound, at_a).unwrap().local_addr().unwrap(), at_a);
        assert!(inherited.claim(Role::Inbound, at_a).is_none(), "claimed already");
        assert_eq!(inherited.unclaimed().collect::<Vec<_>>(), [at_b]);
        assert!(inherited.claim(Role::Metrics, at_b).is_some(), "the configuration says what it is for");
    }

    #[test]
    fn a_socket_on_all_addresses_serves_both_families_unless_it_does_not() {
        let dual = |only_v6: bool| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
            socket.set_only_v6(only_v6).unwrap();
            socket.bind(&"[::]:0".parse::<SocketAddr>().unwrap().into()).unwrap();
            socket.listen(1).unwrap();
            TcpListener::from(socket)
        };
        for only_v6 in [false, true] {
            let listener = dual(only_v6);
            let port = listener.local_addr().unwrap().port();
            let wanted = SocketAddr::from(([0, 0, 0, 0], port));
            let claimed = inherited(&[(&listener, None)]).claim(Role::Inbound, wanted);
            assert_eq!(claimed.is_some(), !only_v6);
            let loopback = SocketAddr::from(([127, 0, 0, 1], port));
            assert!(inherited(&[(&listener, None)]).claim(Role::Inbound, loopback).is_none());
        }
    }

    #[test]
    fn what_does_not_listen_for_tcp_is_refused() {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let unix = std::os::unix::net::UnixStream::pair().unwrap().0;
        let file = std::fs::File::open("/dev/null").unwrap();
        let bound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        for fd in [OwnedFd::from(udp), unix.into(), file.into(), bound.into()] {
            Inherited::default().add(fd, None).unwrap_err();
        }
    }
}
