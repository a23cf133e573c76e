//! Unix sockets for this process's own user: in a directory that strangers cannot write, mode 0600 from the first moment, and
//! never in the place of something that is not a dead socket of our own.
//!
//! A socket is bound under a name of its own and moved to its place when it is to be found there. So a successor replaces
//! its predecessor's without a moment in which there is none, and the predecessor, which removes only what it has made
//! itself, leaves the successor's alone.

use std::fs::{DirBuilder, File, Metadata};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};

/// Those who may wait to be accepted; operators and successors are few.
const BACKLOG: i32 = 64;

/// How the socket is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A stream of bytes.
    Stream,
    /// Whole messages in order (`SOCK_SEQPACKET`).
    Messages,
}

/// What to do where a process answers at the path already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupied {
    /// Fail: two processes would take each other's callers.
    Refuse,
    /// Take its place: it is our predecessor, and has handed over.
    Replace,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum PrivateSocketError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Socket or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No directory in it.
    #[error("{}: this names no file in a directory", .0.display())]
    NoName(PathBuf),
    /// Strangers could put a socket of their own there.
    #[error(
        "{}: every user may write to this directory (mode {mode:04o}); put the socket into one that only this process's user can write",
        path.display()
    )]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It belongs to a stranger.
    #[error("{}: it belongs to user {owner}, neither to this process's user nor to root", path.display())]
    Owner {
        /// Directory or socket.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Something else is there.
    #[error("{}: there is a file that is not a socket; it is left alone. Remove it or choose another path", .0.display())]
    Foreign(PathBuf),
    /// Another process listens there.
    #[error("{}: another process answers there; give each proxy a path of its own", .0.display())]
    Taken(PathBuf),
}

/// A bound socket that is not in its place yet. Nobody can find it before [`Self::publish`].
#[derive(Debug)]
pub struct PrivateSocket {
    socket: Socket,
    /// Where it lies meanwhile.
    place: Place,
    wanted: PathBuf,
    kind: Kind,
}

/// A socket's file; removed when this is dropped, unless somebody else has taken its place.
#[derive(Debug)]
pub struct Place {
    directory: Directory,
    name: PathBuf,
    /// Device and inode: by these it is known to be ours.
    is: (u64, u64),
}

impl PrivateSocket {
    /// Checks the place and binds, so that a failure shows at start. A directory that is missing is made, if its own is there.
    pub fn prepare(path: &Path, kind: Kind, occupied: Occupied) -> Result<Self, PrivateSocketError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(PrivateSocketError::NoName(path.to_owned()));
        };
        let directory = Directory::open(parent)?;
        directory.check_place(Path::new(name), kind, occupied)?;
        let temporary = PathBuf::from(format!(".{}.next", name.to_string_lossy()));
        // Left by one that died before it was ready.
        directory.check_place(&temporary, kind, Occupied::Replace)?;
        let io = |source| PrivateSocketError::Io { path: path.to_owned(), source };
        match std::fs::remove_file(directory.way(&temporary)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(e)),
            _ => {}
        }
        let (socket, is) = directory.bind(&temporary, kind).map_err(io)?;
        let place = Place { directory, name: temporary, is };
        socket.listen(BACKLOG).map_err(io)?;
        Ok(Self { socket, place, wanted: name.into(), kind })
    }

    /// Moves the socket to its place: from here on it is found.
    pub fn publish(mut self, occupied: Occupied) -> Result<(OwnedFd, Place), PrivateSocketError> {
        let directory = &self.place.directory;
        directory.check_place(&self.wanted, self.kind, occupied)?;
        let path = directory.path.join(&self.wanted);
        if !self.place.is_ours() {
            return Err(PrivateSocketError::Taken(path));
        }
        std::fs::rename(directory.way(&self.place.name), directory.way(&self.wanted))
            .map_err(|source| PrivateSocketError::Io { path, source })?;
        self.place.name = self.wanted;
        Ok((self.socket.into(), self.place))
    }
}

/// Connects to the socket at `path`, however long the path is.
pub fn connect(path: &Path, kind: Kind) -> io::Result<Socket> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let held = File::open(directory_of(parent))?;
    let socket = Socket::new(Domain::UNIX, kind.into(), None)?;
    socket.connect(&SockAddr::unix(way(&held, Path::new(name)))?)?;
    Ok(socket)
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = std::fs::remove_file(self.directory.way(&self.name));
        }
    }
}

impl Place {
    fn is_ours(&self) -> bool {
        let found = std::fs::symlink_metadata(self.directory.way(&self.name));
        found.is_ok_and(|found| (found.dev(), found.ino()) == self.is)
    }
}

impl From<Kind> for Type {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Stream => Self::STREAM,
            Kind::Messages => Self::SEQPACKET,
        }
    }
}

/// An open directory: what was checked is what is used.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    held: File,
}

impl Directory {
    fn open(parent: &Path) -> Result<Self, PrivateSocketError> {
        let path = directory_of(parent).to_owned();
        let io = |source| PrivateSocketError::Io { path: path.clone(), source };
        // Not private: sockets for other users may lie beside this one. The mode of each socket is its lock.
        match DirBuilder::new().mode(0o755).create(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(io(e)),
            _ => {}
        }
        let held = File::open(&path).map_err(io)?;
        let found = held.metadata().map_err(io)?;
        if found.mode() & 0o002 != 0 {
            return Err(PrivateSocketError::Open { path, mode: found.mode() & 0o7777 });
        }
        check_owner(&path, &found)?;
        Ok(Self { path, held })
    }

    /// Whether a socket may be put there: nothing is there, or a socket of our own, dead unless it may be replaced.
    fn check_place(&self, name: &Path, kind: Kind, occupied: Occupied) -> Result<(), PrivateSocketError> {
        let path = self.path.join(name);
        let found = match std::fs::symlink_metadata(self.way(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(PrivateSocketError::Io { path, source }),
            Ok(found) => found,
        };
        if !found.file_type().is_socket() {
            return Err(PrivateSocketError::Foreign(path));
        }
        check_owner(&path, &found)?;
        if occupied == Occupied::Refuse && self.answers(name, kind) {
            return Err(PrivateSocketError::Taken(path));
        }
        Ok(())
    }

    fn answers(&self, name: &Path, kind: Kind) -> bool {
        let connecting = || {
            let socket = Socket::new(Domain::UNIX, kind.into(), None)?;
            // One whose queue is full answers as well: `WouldBlock`.
            socket.set_nonblocking(true)?;
            socket.connect(&SockAddr::unix(self.way(name))?)
        };
        !matches!(connecting(), Err(e) if e.kind() == io::ErrorKind::ConnectionRefused)
    }

    fn bind(&self, name: &Path, kind: Kind) -> io::Result<(Socket, (u64, u64))> {
        let socket = Socket::new(Domain::UNIX, kind.into(), None)?;
        socket.set_nonblocking(true)?;
        // Linux gives the file the mode that the socket has.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
        socket.bind(&SockAddr::unix(self.way(name))?)?;
        let made = std::fs::symlink_metadata(self.way(name))?;
        Ok((socket, (made.dev(), made.ino())))
    }

    fn way(&self, name: &Path) -> PathBuf {
        way(&self.held, name)
    }
}

/// The way to a file through its open directory: short, whatever the directory's own path is. A socket's address has room
/// for 107 bytes only.
fn way(held: &File, name: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd())).join(name)
}

/// `Path::parent` of a bare name is empty.
fn directory_of(parent: &Path) -> &Path {
    if parent.as_os_str().is_empty() { Path::new(".") } else { parent }
}

fn check_owner(path: &Path, found: &Metadata) -> Result<(), PrivateSocketError> {
    let owner = found.uid();
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Err(PrivateSocketError::Owner { path: path.to_owned(), owner });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
