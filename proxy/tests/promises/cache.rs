//! The identity cache is used only where nobody else can have read or written it; otherwise the proxy says why, and ends.

use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

use serde_json::{Value, json};

use crate::support::mesh::{Directory, Mesh};
use crate::support::process::{command, finish};

/// Starts with this cache and no join string; what is said on standard error. Nothing must be said to be ready.
fn refused(cache: Option<&Path>) -> String {
    let mut command = command();
    command.args(["--metrics", "127.0.0.1:0", "--control", "127.0.0.1:1"]);
    command.args(["--inbound", "127.0.0.1:0=127.0.0.1:9"]);
    if let Some(cache) = cache {
        command.arg("--identity-cache").arg(cache);
    }
    let (code, out, err) = finish(command);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(!err.contains("panicked"), "{err}");
    err
}

fn with(document: &str) -> Directory {
    let dir = Directory::new();
    dir.write("identity.json", document);
    dir
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_file_that_others_may_read_is_refused() {
    let cache = Mesh::new().cache(3600).to_string();
    for wide in [0o644, 0o640, 0o604, 0o660] {
        let dir = with(&cache);
        mode(&dir.path().join("identity.json"), wide);
        let said = refused(Some(dir.path()));
        assert!(said.contains(&format!("{wide:04o}")) && said.contains("chmod 0600"), "{said}");
    }
}

#[test]
fn a_directory_that_others_may_enter_is_refused() {
    let cache = Mesh::new().cache(3600).to_string();
    for wide in [0o755, 0o710, 0o701] {
        let dir = with(&cache);
        mode(dir.path(), wide);
        let said = refused(Some(dir.path()));
        assert!(said.contains(&format!("{wide:04o}")) && said.contains("chmod 0700"), "{said}");
    }
}

#[test]
fn what_belongs_to_somebody_else_is_refused() {
    let nobody = 65534;
    let dir = with(&Mesh::new().cache(3600).to_string());
    // Only root can give a file away; anybody else is shown what is root's.
    let said = match chown(dir.path().join("identity.json"), Some(nobody), None) {
        Ok(()) => refused(Some(dir.path())),
        Err(_) => refused(Some(Path::new("/"))),
    };
    assert!(said.contains("belongs to user"), "{said}");
    if chown(dir.path(), Some(nobody), None).is_ok() {
        let said = refused(Some(dir.path()));
        assert!(said.contains("belongs to user 65534"), "{said}");
    }
}

#[test]
fn a_link_to_somewhere_else_is_refused() {
    let elsewhere = with(&Mesh::new().cache(3600).to_string());
    let dir = Directory::new();
    symlink(elsewhere.path().join("identity.json"), dir.path().join("identity.json")).unwrap();
    assert!(refused(Some(dir.path())).contains("identity.json"));
}

#[test]
fn a_damaged_file_is_refused_with_a_way_out() {
    let mesh = Mesh::new();
    let cache = mesh.cache(3600);
    let text = cache.to_string();
    let changed = |field: &str, value: Value| {
        let mut cache = cache.clone();
        cache[field] = value;
        cache.to_string()
    };
    let damaged = [
        String::new(),
        "no JSON".to_owned(),
        text[..text.len() / 2].to_owned(),
        changed("version", json!(2)),
        changed("surprise", json!(1)),
        changed("trust_domain", json!("Not A Domain")),
        changed("chain", json!(["!"])),
        changed("key", json!("!")),
        changed("state", json!("AAAA")),
    ];
    for document in damaged {
        let said = refused(Some(with(&document).path()));
        assert!(said.contains("delete it and enroll anew"), "{said}");
    }
}

/// It can be read, and would not be believed by anybody.
#[test]
fn an_identity_that_cannot_be_used_is_refused() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let cache = mesh.cache(3600);
    let changed = |field: &str, value: Value| {
        let mut cache = cache.clone();
        cache[field] = value;
        cache.to_string()
    };
    let unusable = [
        changed("key", mesh.cache(3600)["key"].clone()),
        changed("key", json!(STANDARD.encode(b"no key"))),
        changed("chain", json!([])),
        changed("chain", json!([STANDARD.encode(&mesh.root.der)])),
        changed("chain", json!([STANDARD.encode(b"no certificate")])),
        changed("chain", other.cache(3600)["chain"].clone()),
        changed("state", other.cache(3600)["state"].clone()),
        changed("state", json!("")),
        changed("trust_domain", json!("partner.example")),
    ];
    for document in unusable {
        let said = refused(Some(with(&document).path()));
        let cure = ["identity cache", "cannot be used", "delete it and enroll anew"];
        assert!(cure.iter().all(|words| said.contains(words)), "{said}");
    }
}

#[test]
fn an_expired_identity_needs_a_new_token() {
    let said = refused(Some(with(&Mesh::new().cache(-5).to_string()).path()));
    assert!(said.contains("expired") && said.contains("postern token create"), "{said}");
}

#[test]
fn without_cache_and_join_string_there_is_nothing_to_begin_with() {
    for said in [refused(None), refused(Some(Directory::new().path()))] {
        assert!(said.contains("no identity and no join string"), "{said}");
        assert!(said.contains("postern token create"), "{said}");
    }
}
