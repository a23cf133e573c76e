//! Foreign programs from Debian packages: where they are, how servers among them are started and ended.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use postern_loadtest::mesh::{Directory, Process, READY, until};

/// Finds a program in `PATH` and where Debian keeps servers; panics with the package's name.
pub(crate) fn program(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let postgres = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .chain(postgres.map(|version| version.path().join("bin")))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: install the package {package}"))
}

/// Runs a program to its end; panics with its standard error if it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{:?}: {e}", command.get_program()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("it prints text")
}

/// A server on a loopback port of its own. Dropped, it is ended in order.
pub(crate) struct Server {
    process: Process,
    pub(crate) address: SocketAddr,
    dir: Option<Directory>,
}

impl Server {
    pub(crate) fn start(name: &str, command: impl Fn(u16) -> Command, dir: &Path) -> Self {
        // The port is free when it is chosen; another process may take it before the server does.
        for _ in 0..5 {
            let chosen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
            let address = chosen.local_addr().expect("bound");
            drop(chosen);
            let mut process = Process::spawn(name, command(address.port()), dir).expect("it starts");
            let is_up = until(READY, || match process.exit_status() {
                Some(_) => Some(false),
                None => TcpStream::connect(address).is_ok().then_some(true),
            });
            match is_up {
                Some(true) => return Self { process, address, dir: None },
                Some(false) => {}
                None => panic!("{name} does not listen:\n{}", process.tail(40)),
            }
        }
        panic!(
            "{name} does not start:\n{}",
            std::fs::read_to_string(dir.join(format!("{name}.log"))).expect("a log")
        );
    }

    /// nginx, one process, serving the files of `dir/www`.
    pub(crate) fn nginx(dir: &Path) -> Self {
        let nginx = program("nginx", "nginx");
        let command = |port| {
            let d = dir.display();
            let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|kind| format!("{kind}_temp_path {d}/{kind};\n"))
                .concat();
            let text = format!(
                "daemon off; master_process off; pid {d}/nginx.pid; error_log stderr;\n\
                 events {{ worker_connections 1024; }}\n\
                 http {{ {temporary} access_log off; server {{ listen 127.0.0.1:{port}; root {d}/www; }} }}\n"
            );
            std::fs::write(dir.join("nginx.conf"), text).expect("the directory is ours");
            let mut command = Command::new(&nginx);
            command.arg("-e").arg("stderr").arg("-c").arg(dir.join("nginx.conf")).arg("-p").arg(dir);
            command
        };
        Self::start("nginx", command, dir)
    }

    /// redis without a disk.
    pub(crate) fn redis(dir: &Path) -> Self {
        let redis = program("redis-server", "redis-server");
        let command = |port: u16| {
            let mut command = Command::new(&redis);
            command.args([
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--port",
                &port.to_string(),
            ]);
            command.arg("--dir").arg(dir);
            command
        };
        Self::start("redis", command, dir)
    }

    /// A fresh PostgreSQL cluster whose superuser `postgres` needs no password.
    pub(crate) fn postgres() -> Self {
        let (initdb, postgres) = (program("initdb", "postgresql"), program("postgres", "postgresql"));
        let dir = Directory::new().expect("a directory");
        let data = dir.path().join("data");
        // It refuses to run as root; then it is the package's own user who runs it.
        let user = (nix::unistd::geteuid().is_root()).then(|| (number("-u"), number("-g")));
        let as_user = |program: &Path| {
            let mut command = Command::new(program);
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command.current_dir(dir.path()).env("LC_ALL", "C.UTF-8");
            command
        };
        if let Some((uid, gid)) = user {
            chown(dir.path(), Some(uid), Some(gid)).expect("root may");
        }
        let mut init = as_user(&initdb);
        run(init
            .args(["--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "-D"])
            .arg(&data));
        let command = |port: u16| {
            let mut command = as_user(&postgres);
            command.args([
                "-h",
                "127.0.0.1",
                "-p",
                &port.to_string(),
                "-c",
                "unix_socket_directories=",
                "-F",
                "-D",
            ]);
            command.arg(&data);
            command
        };
        let mut server = Self::start("postgres", command, dir.path());
        server.dir = Some(dir);
        server
    }
}

impl Server {
    /// SIGKILL: its connections break off.
    pub(crate) fn kill(mut self) {
        self.process.kill9();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // For PostgreSQL the fast shutdown, which ends its children, too; for the others an end like any.
        self.process.signal(Signal::SIGINT);
        let _ = self.process.wait(Duration::from_secs(10));
    }
}

/// The user or group that Debian's package made.
fn number(which: &str) -> u32 {
    run(Command::new("id").args([which, "postgres"])).trim().parse().expect("a number")
}
