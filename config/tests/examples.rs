//! Every file under `examples/` loads and makes sense.

#![expect(clippy::unwrap_used, reason = "what a test prepares must succeed")]

use std::path::{Path, PathBuf};

use postern_config::file;
use postern_config::file::control::ControlConfig;
use postern_config::file::proxy::ProxyConfig;
use postern_config::policy::{Document, read_stream};
use postern_config::registry::Identity;
use postern_config::service::Service;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|p| p.is_file()).collect();
    files.sort();
    files
}

#[test]
fn every_configuration_loads_and_makes_sense() {
    let mut seen = Vec::new();
    for path in files(&folder()) {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        match name.split('-').next() {
            Some("proxy" | "gateway") => file::load::<ProxyConfig>(&path).unwrap().check().unwrap(),
            Some("control") => file::load::<ControlConfig>(&path).unwrap().check().unwrap(),
            Some("identities") => {
                let identities = file::load_stream::<Identity>(&path).unwrap();
                assert!(!identities.is_empty());
                identities.iter().for_each(|i| i.check().unwrap());
            }
            Some("service") => {
                let services = file::load_stream::<Service>(&path).unwrap();
                assert!(!services.is_empty());
                services.iter().for_each(|s| s.check().unwrap());
            }
            _ => panic!("{} is of no known kind", path.display()),
        }
        seen.push(name);
    }
    let expected = [
        "control-attested",
        "control-public",
        "control-vault",
        "control",
        "gateway",
        "identities",
        "proxy-edge-like",
        "proxy-kubernetes",
        "proxy-sidecar",
        "service",
    ];
    assert_eq!(seen, expected);
}

#[test]
fn every_policy_loads_and_survives_the_wire() {
    let paths = files(&folder().join("policies"));
    assert!(paths.len() >= 6);
    for path in paths {
        let documents =
            read_stream(&file::read(&path).unwrap()).unwrap_or_else(|e| panic!("{}:{e}", path.display()));
        assert!(!documents.is_empty());
        for document in documents {
            assert_eq!(Document::from_json(&document.to_json()).unwrap(), document);
        }
    }
}

#[test]
fn the_compose_files_mesh_loads_and_makes_sense() {
    let mesh = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/mesh");
    for proxy in ["shop-proxy.yaml", "web-proxy.yaml"] {
        file::load::<ProxyConfig>(&mesh.join(proxy)).unwrap().check().unwrap();
    }
    let services = file::load_stream::<Service>(&mesh.join("services.yaml")).unwrap();
    assert!(!services.is_empty());
    services.iter().for_each(|s| s.check().unwrap());
    let policies = read_stream(&file::read(&mesh.join("policy.yaml")).unwrap()).unwrap();
    assert!(!policies.is_empty());
}
