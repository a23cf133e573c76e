//! Python programs as foreign clients and servers: gRPC and WebSocket by libraries that nobody here wrote.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::programs::{Server, run};

/// The interpreter, with a module that the program needs; panics with the commands that install it.
pub(crate) fn python(module: &str) -> Command {
    let python = std::env::var_os("POSTERN_PYTHON").unwrap_or_else(|| "python3".into());
    let mut command = Command::new(&python);
    // What a test writes into the checkout is nobody's wish.
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUNBUFFERED", "1");
    let mut import = Command::new(&python);
    let imported = import.args(["-c", &format!("import {module}")]).output();
    assert!(
        imported.as_ref().is_ok_and(|o| o.status.success()),
        "{} does not import {module} ({imported:?}): install it with\n  \
         apt-get install python3-venv && python3 -m venv VENV && VENV/bin/pip install -r {}\n\
         and run the tests with POSTERN_PYTHON=VENV/bin/python",
        Path::new(&python).display(),
        script("requirements.txt").display(),
    );
    command
}

/// A file beside the tests.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/promises/python").join(name)
}

/// Runs cases of a client script against `target`: what it prints.
pub(crate) fn calls(name: &str, module: &str, target: &str, cases: &[&str]) -> String {
    run(python(module).arg(script(name)).arg(target).args(cases))
}

impl Server {
    /// `app.py` on Python's own HTTP server, which speaks HTTP/`version`.
    pub(crate) fn python(dir: &Path, version: &str) -> Self {
        let command = |port: u16| {
            let mut command = python("http.server");
            command.arg(script("app.py")).arg(port.to_string()).arg(version);
            command
        };
        Self::start("python", command, dir)
    }

    /// The gRPC server `grpc_app.py`.
    pub(crate) fn grpc(dir: &Path) -> Self {
        let command = |port: u16| {
            let mut command = python("grpc");
            command.arg(script("grpc_app.py")).arg(port.to_string());
            command
        };
        Self::start("grpc", command, dir)
    }

    /// The WebSocket server `websocket_app.py`.
    pub(crate) fn websocket(dir: &Path) -> Self {
        let command = |port: u16| {
            let mut command = python("websockets");
            command.arg(script("websocket_app.py")).arg(port.to_string());
            command
        };
        Self::start("websocket", command, dir)
    }
}
