//! What is replaced, what is left alone, and who finds what.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn prepare(path: &Path) -> Result<PrivateSocket, PrivateSocketError> {
    PrivateSocket::prepare(path, Kind::Stream, Occupied::Refuse)
}

fn publish(path: &Path) -> (UnixListener, Place) {
    let (socket, place) = prepare(path).unwrap().publish(Occupied::Refuse).unwrap();
    (UnixListener::from(socket), place)
}

#[test]
fn a_socket_is_private_found_only_when_published_and_goes_with_its_handle() {
    let dir = directory();
    let path = dir.path().join("new/admin.sock");
    let prepared = prepare(&path).unwrap();
    assert!(!path.exists());
    let (_socket, place) = prepared.publish(Occupied::Refuse).unwrap();
    let found = std::fs::symlink_metadata(&path).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    assert_eq!(dir.path().join("new").metadata().unwrap().permissions().mode() & 0o022, 0);
    UnixStream::connect(&path).unwrap();
    drop(place);
    assert_eq!(std::fs::read_dir(dir.path().join("new")).unwrap().count(), 0, "nothing is left");
}

#[test]
fn a_dead_socket_is_replaced_a_live_one_and_a_foreign_file_are_not() {
    let dir = directory();
    let path = dir.path().join("admin.sock");
    drop(UnixListener::bind(&path).unwrap());
    let (live, place) = publish(&path);
    let error = prepare(&path).unwrap_err();
    assert!(matches!(error, PrivateSocketError::Taken(_)), "{error}");
    // A listener whose queue is full does not look dead.
    let mut waiting = Vec::new();
    while !waiting.last().is_some_and(Result::is_err) && waiting.len() < 1000 {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        waiting.push(socket.connect(&SockAddr::unix(&path).unwrap()).map(|()| socket));
    }
    assert!(matches!(prepare(&path).unwrap_err(), PrivateSocketError::Taken(_)));
    drop((live, place));
    std::fs::write(&path, "precious").unwrap();
    let error = prepare(&path).unwrap_err();
    assert!(matches!(error, PrivateSocketError::Foreign(_)), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
    assert!(
        matches!(prepare(&path).unwrap_err(), PrivateSocketError::Foreign(_)),
        "a link is a foreign file"
    );
}

#[test]
fn a_successor_takes_the_place_and_its_predecessor_leaves_it_alone() {
    let dir = directory();
    let path = dir.path().join("admin.sock");
    let (old, old_place) = publish(&path);
    let next = PrivateSocket::prepare(&path, Kind::Stream, Occupied::Replace).unwrap();
    UnixStream::connect(&path).unwrap();
    old.accept().unwrap();
    let (socket, _place) = next.publish(Occupied::Replace).unwrap();
    drop((old, old_place));
    let new = UnixListener::from(socket);
    UnixStream::connect(&path).unwrap();
    new.accept().unwrap();
}

#[test]
fn a_successor_that_dies_before_it_is_ready_leaves_nothing_in_the_next_ones_way() {
    let dir = directory();
    let path = dir.path().join("admin.sock");
    let (_old, _place) = publish(&path);
    // Killed: nothing of it runs any more.
    std::mem::forget(PrivateSocket::prepare(&path, Kind::Stream, Occupied::Replace).unwrap());
    let next = PrivateSocket::prepare(&path, Kind::Stream, Occupied::Replace).unwrap();
    next.publish(Occupied::Replace).unwrap();
}

#[test]
fn a_directory_that_strangers_can_write_is_refused() {
    let dir = directory();
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o1777)).unwrap();
    let error = prepare(&open.join("admin.sock")).unwrap_err();
    assert!(matches!(error, PrivateSocketError::Open { mode: 0o1777, .. }), "{error}");
    let error = prepare(&dir.path().join("a/b/admin.sock")).unwrap_err();
    assert!(matches!(error, PrivateSocketError::Io { .. }), "only the last directory is made: {error}");
}

#[test]
fn what_belongs_to_a_stranger_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return; // only root can make such a thing
    }
    let dir = directory();
    let path = dir.path().join("admin.sock");
    drop(UnixListener::bind(&path).unwrap());
    std::os::unix::fs::chown(&path, Some(4242), None).unwrap();
    assert!(matches!(prepare(&path).unwrap_err(), PrivateSocketError::Owner { owner: 4242, .. }));
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::chown(dir.path(), Some(4242), None).unwrap();
    assert!(matches!(prepare(&path).unwrap_err(), PrivateSocketError::Owner { owner: 4242, .. }));
}

#[test]
fn a_path_may_be_longer_than_a_sockets_address() {
    let dir = directory();
    let mut deep = dir.path().to_owned();
    for _ in 0..10 {
        deep.push("a-directory-with-a-name");
    }
    std::fs::create_dir_all(&deep).unwrap();
    let path = deep.join("admin.sock");
    let (_listener, _place) = publish(&path);
    connect(&path, Kind::Stream).unwrap();
}
