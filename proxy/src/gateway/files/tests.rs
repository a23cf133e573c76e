//! Which directories are watched for a path.

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn every_link_on_the_way_is_watched_where_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let make = |path: &str| std::fs::create_dir_all(root.join(path)).unwrap();
    // As Kubernetes mounts a secret.
    make("secret/..2026_01");
    std::fs::write(root.join("secret/..2026_01/tls.crt"), "").unwrap();
    symlink("..2026_01", root.join("secret/..data")).unwrap();
    symlink("..data/tls.crt", root.join("secret/tls.crt")).unwrap();
    // A directory that is swapped as a whole, reached by an absolute link.
    make("versions/7");
    make("etc");
    std::fs::write(root.join("versions/7/tls.crt"), "").unwrap();
    symlink(root.join("versions/7"), root.join("etc/live")).unwrap();

    let of = |path: &str| directories(&root.join(path)).into_iter().collect::<Vec<_>>();
    assert_eq!(of("secret/tls.crt"), [root.join("secret"), root.join("secret/..2026_01")]);
    assert_eq!(of("etc/live/tls.crt"), [root.join("etc"), root.join("versions/7")]);
    assert_eq!(of("etc/../versions/7/tls.crt"), [root.join("versions/7")]);
    assert_eq!(of("versions/7/not-yet"), [root.join("versions/7")]);
    symlink("loop", root.join("loop")).unwrap();
    assert!(of("loop/x").contains(&root), "a loop ends");
}
