//! HTTP as clients and servers speak it that nobody here wrote: curl, nghttp, h2load, wrk and hey against nginx and Python.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use postern_loadtest::app::App;
use postern_loadtest::mesh::{Directory, Mesh, Sidecar, until};
use serde_json::Value;

use crate::programs::{Server, program, run};
use crate::support::SOON;

/// How curl is told the version of HTTP, and what the app behind two proxies sees of it: always its own.
const VERSIONS: [&str; 3] = ["--http1.0", "--http1.1", "--http2-prior-knowledge"];
const MIB: usize = 1 << 20;

/// curl, which fails where it saw no complete answer. Its exit code and its output count, so it is not [`run`].
fn curl(arguments: &[&str]) -> Output {
    let mut curl = Command::new(program("curl", "curl"));
    curl.args(["--silent", "--show-error", "--max-time", "60"]).args(arguments);
    curl.stdin(Stdio::null()).output().expect("curl starts")
}

/// What curl got, complete.
fn got(arguments: &[&str]) -> String {
    let output = curl(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "curl {arguments:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

fn json(arguments: &[&str]) -> Value {
    let text = got(arguments);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}

/// All lines of one header in what the app says that it has seen.
fn seen<'a>(answer: &'a Value, name: &str) -> Vec<&'a str> {
    let headers = answer["headers"].as_array().unwrap().iter();
    headers.filter(|h| h[0] == name).filter_map(|h| h[1].as_str()).collect()
}

fn sha256(path: &Path) -> String {
    let line = run(Command::new(program("sha256sum", "coreutils")).arg(path));
    line.split(' ').next().unwrap().to_owned()
}

/// A file of noise.
fn noise(dir: &Path, bytes: usize) -> std::path::PathBuf {
    let path = dir.join(format!("noise-{bytes}"));
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::fs::write(&path, std::iter::repeat_with(&mut next).take(bytes).collect::<Vec<u8>>()).unwrap();
    path
}

fn python(protocol: &str, version: &str) -> (Directory, Server, Mesh, Sidecar, Sidecar) {
    let dir = Directory::new().unwrap();
    let app = Server::python(dir.path(), version);
    let mesh = Mesh::start().unwrap();
    let (server, client) = mesh.pair(app.address, protocol).unwrap();
    (dir, app, mesh, server, client)
}

#[test]
fn a_python_app_sees_each_request_as_if_its_client_stood_beside_it() {
    for protocol in ["http", "auto"] {
        let (_dir, _app, mesh, _server, client) = python(protocol, "1.1");
        let at = |path: &str| url(client.outbound(), path);
        for version in VERSIONS {
            let spoofed =
                ["x-forwarded-client-cert: By=me", "x_forwarded_client_cert: By=me", "x-postern-a: b"];
            let mut arguments = vec![version, "-H", "X-Said: a", "-H", "X-Said: b", "-H", "Host: shop.test"];
            spoofed.iter().for_each(|header| arguments.extend(["-H", header]));
            // `%41` is an `A`, spelled so that a policy might miss it; it and only it arrives in its one spelling.
            let target = at("/seen/%41/a%20b;c?q=a%20%41&&c#not-sent");
            arguments.push(&target);
            let answer = json(&arguments);
            assert_eq!(answer["method"], "GET");
            assert_eq!(answer["target"], "/seen/A/a%20b;c?q=a%20%41&&c", "{protocol} {version}");
            assert_eq!(answer["version"], "HTTP/1.1", "the app's own version, whatever the client's");
            assert_eq!(seen(&answer, "host"), ["shop.test"]);
            assert_eq!(seen(&answer, "x-said"), ["a", "b"]);
            let xfcc = seen(&answer, "x-forwarded-client-cert");
            assert!(xfcc.len() == 1 && xfcc[0].ends_with(&format!("URI={}", mesh.id("client"))), "{answer}");
            assert_eq!(
                seen(&answer, "x_forwarded_client_cert").len() + seen(&answer, "x-postern-a").len(),
                0
            );
            assert_eq!(seen(&answer, "traceparent").len(), 1, "{answer}");
            assert_eq!(seen(&answer, "x-request-id")[0].len(), 26, "{answer}");
            assert_eq!(seen(&answer, "connection").len() + seen(&answer, "transfer-encoding").len(), 0);
        }
        // An offer to go on in HTTP/2 is not taken up: it would take the next requests past whoever judges them.
        let answer = json(&["--http2", &at("/seen")]);
        assert_eq!(answer["version"], "HTTP/1.1");
        assert_eq!(seen(&answer, "upgrade").len() + seen(&answer, "http2-settings").len(), 0, "{answer}");
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let answer = json(&["-X", method, "--data", "abc", &at("/seen")]);
            assert_eq!((&answer["method"], &answer["length"]), (&method.into(), &3.into()), "{protocol}");
        }
        let kept = json(&[
            "-H",
            "x-request-id: mine-1",
            "-H",
            "Connection: x-mine",
            "-H",
            "x-mine: 1",
            &at("/seen"),
        ]);
        assert_eq!(seen(&kept, "x-request-id"), ["mine-1"]);
        assert_eq!(seen(&kept, "x-mine").len(), 0, "Connection names what ends at this hop");
    }
}

#[test]
fn keep_alive_reaches_as_far_as_each_side_wants_it() {
    let (_dir, _app, _mesh, server, client) = python("http", "1.1");
    let seen = url(client.outbound(), "/seen");
    let connects = |version: &str| {
        let mut arguments = vec![version, "--write-out", "\n%{num_connects}\n"];
        arguments.extend(std::iter::repeat_n(seen.as_str(), 50));
        got(&arguments).lines().filter_map(|l| l.parse::<u32>().ok()).sum::<u32>()
    };
    assert_eq!(connects("--http1.1"), 1, "the proxy ended a connection that the client would have kept");
    assert_eq!(connects("--http1.0"), 50, "HTTP/1.0 keeps none that was not asked for");
    let closing = ["-H", "Connection: close", "--write-out", "\n%{num_connects}\n", &seen, &seen];
    assert_eq!(got(&closing).lines().filter(|l| *l == "1").count(), 2);
    let ok = [("direction", "inbound"), ("result", "ok")];
    let handshakes = server.metrics().unwrap().count("postern_handshakes_total", &ok);
    assert!(handshakes <= 2, "they share a connection per worker, but there were {handshakes} handshakes");

    // An app that ends its connection after each answer: nothing of that is seen by the client.
    let (_dir, _app, _mesh, _server, client) = python("http", "1.0");
    let (hello, post) = (url(client.outbound(), "/"), url(client.outbound(), "/seen"));
    let mut arguments = vec!["--write-out", "%{num_connects}\n"];
    arguments.extend(std::iter::repeat_n(hello.as_str(), 20));
    let lines = got(&arguments);
    assert_eq!(lines.matches("hello from python").count(), 20);
    assert_eq!(lines.lines().filter_map(|l| l.parse::<u32>().ok()).sum::<u32>(), 1, "{lines}");
    for version in VERSIONS {
        let answer = json(&[version, "--data-binary", "@/dev/null", "-X", "POST", &post]);
        assert_eq!(answer["method"], "POST");
    }
}

#[test]
fn bodies_arrive_whole_both_ways_with_their_trailers() {
    let (dir, _app, _mesh, mut server, mut client) = python("http", "1.1");
    let at = |path: &str| url(client.outbound(), path);
    let file = noise(dir.path(), 24 * MIB);
    let (sum, upload) = (sha256(&file), format!("@{}", file.display()));
    for version in VERSIONS {
        // curl asks for `100 Continue` by itself before a body of this size, in HTTP/1.1.
        let answer = json(&[version, "--data-binary", &upload, &at("/seen")]);
        assert_eq!(
            (answer["length"].as_u64(), answer["sha256"].as_str()),
            (Some(24 << 20), Some(&*sum)),
            "{version}"
        );
        assert_eq!(
            seen(&answer, "content-length"),
            [(24 * MIB).to_string()],
            "{version}: its length is known"
        );
    }
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let mut arguments = vec![version, "-X", "POST", "-T", file.to_str().unwrap()];
        // Without a length: chunked in HTTP/1.1, until END_STREAM in HTTP/2.
        arguments.extend(["-H", "Transfer-Encoding: chunked", "-H", "Content-Length:"]);
        let target = at("/seen");
        arguments.push(&target);
        let answer = json(&arguments);
        assert_eq!(
            (answer["length"].as_u64(), answer["sha256"].as_str()),
            (Some(24 << 20), Some(&*sum)),
            "{version}"
        );
        assert_eq!(seen(&answer, "content-length").len(), 0, "{version}: {}", answer["headers"]);
    }
    let answer = json(&["-H", "Expect: 100-continue", "--data", "small", &at("/seen")]);
    assert_eq!(answer["length"], 5);

    let file = dir.path().join("got");
    let head = dir.path().join("head");
    for version in VERSIONS {
        got(&[version, "-o", file.to_str().unwrap(), &at(&format!("/bytes/{}", 24 * MIB))]);
        let known = sha256(&file);
        got(&[version, "-o", file.to_str().unwrap(), &at(&format!("/chunked/{}", 24 * MIB))]);
        assert_eq!(sha256(&file), known, "{version}: the same bytes, framed in another way");
        if version != "--http1.0" {
            let (file, head) = (file.to_str().unwrap(), head.to_str().unwrap());
            got(&[
                version,
                "-H",
                "TE: trailers",
                "-H",
                "Connection: TE",
                "-D",
                head,
                "-o",
                file,
                &at("/chunked/100000"),
            ]);
            let trailers = std::fs::read_to_string(head).unwrap();
            let sum = sha256(Path::new(file));
            assert!(
                trailers.to_ascii_lowercase().contains(&format!("x-sha256: {sum}")),
                "{version}: {trailers}"
            );
        }
    }
    // Streamed, not kept: 144 MiB have gone through each.
    for sidecar in [&mut server, &mut client] {
        let rss = sidecar.process().rss().unwrap();
        assert!(rss < 96 << 20, "{} holds {} MiB", sidecar.name(), rss >> 20);
    }
}

#[test]
fn answers_without_a_body_end_where_they_end() {
    let (_dir, _app, _mesh, _server, client) = python("http", "1.1");
    let at = |path: &str| url(client.outbound(), path);
    for version in VERSIONS {
        for status in ["204", "304", "404", "418", "500", "503"] {
            let path = at(&format!("/status/{status}"));
            // Twice on one connection where there can be two: a body that was read wrongly would spoil the second.
            let pair: &[&str] = if version == "--http1.1" { &[&path, &path] } else { &[&path] };
            let arguments =
                [&[version, "--write-out", "%{http_code} ", "-o", "/dev/null", "-o", "/dev/null"], pair];
            let codes = got(&arguments.concat());
            assert!(codes.split_whitespace().all(|code| code == status), "{version} {status}: {codes}");
        }
        let head = got(&[version, "--head", &at("/bytes/100000")]).to_ascii_lowercase();
        assert!(head.contains("content-length: 100000"), "{version}: {head}");
        let head = got(&[version, "--include", &at("/status/304")]).to_ascii_lowercase();
        assert!(head.contains("etag: \"a\"") && !head.contains("content-length"), "{version}: {head}");
    }
    // The app refuses a body before it has come: its answer, not an error of ours, wherever the body then is.
    let refused = curl(&[
        "-H",
        "Expect: 100-continue",
        "--data",
        "small",
        "--write-out",
        "%{http_code}",
        &at("/refuse"),
    ]);
    assert_eq!(String::from_utf8_lossy(&refused.stdout), "not so large\n413");
}

#[test]
fn nginx_serves_ranges_conditions_and_a_large_file() {
    let dir = Directory::new().unwrap();
    std::fs::create_dir(dir.path().join("www")).unwrap();
    let file = noise(&dir.path().join("www"), 24 * MIB);
    let name = format!("/{}", file.file_name().unwrap().to_str().unwrap());
    let nginx = Server::nginx(dir.path());
    let mesh = Mesh::start().unwrap();
    let (_server, client) = mesh.pair(nginx.address, "http").unwrap();
    let target = url(client.outbound(), &name);
    let sum = sha256(&file);
    let out = dir.path().join("got");
    let out = out.to_str().unwrap();
    for version in VERSIONS {
        got(&[version, "-o", out, &target]);
        assert_eq!(sha256(Path::new(out)), sum, "{version}");
        let code = got(&[
            version,
            "-r",
            "1000-1999",
            "-o",
            out,
            "--write-out",
            "%{http_code} %{size_download}",
            &target,
        ]);
        assert_eq!(code, "206 1000", "{version}");
        assert_eq!(std::fs::read(out).unwrap(), std::fs::read(&file).unwrap()[1000..2000]);
        let code = got(&[version, "-r", "99999999-", "-o", out, "--write-out", "%{http_code}", &target]);
        assert_eq!(code, "416", "{version}");
        let etag = dir.path().join("etag");
        let etag = etag.to_str().unwrap();
        got(&[version, "--etag-save", etag, "-o", out, &target]);
        let code = got(&[version, "--etag-compare", etag, "-o", out, "--write-out", "%{http_code}", &target]);
        assert_eq!(code, "304", "{version}");
    }
    // A download that was cut off goes on where it was.
    std::fs::write(out, &std::fs::read(&file).unwrap()[..5 * MIB]).unwrap();
    got(&["-C", "-", "-o", out, &target]);
    assert_eq!(sha256(Path::new(out)), sum);
}

#[test]
fn an_answer_that_breaks_off_never_looks_complete() {
    let (_dir, _app, _mesh, _server, client) = python("http", "1.1");
    for version in VERSIONS {
        for framing in ["length", "chunked", "reset"] {
            for bytes in ["0", "1000", "500000"] {
                let path = url(client.outbound(), &format!("/die/{framing}/{bytes}"));
                let output = curl(&[version, "-o", "/dev/null", "--write-out", "%{http_code}", &path]);
                let status = String::from_utf8_lossy(&output.stdout).into_owned();
                // Where the end was seen before the head had gone on, an error of ours is as good.
                assert!(
                    !output.status.success() || status.starts_with('5'),
                    "{version} {framing} after {bytes} bytes: {status} looks complete"
                );
            }
        }
        // Without any framing the end of the connection is the end of the answer, for everybody.
        let path = url(client.outbound(), "/die/close/1000");
        assert_eq!(got(&[version, "-o", "/dev/null", "--write-out", "%{size_download}", &path]), "1000");
    }
}

#[test]
fn an_app_that_is_down_is_told_from_one_that_breaks_off_in_answer_log_and_metrics() {
    let (_dir, app, _mesh, server, client) = python("http", "1.1");
    let code = |path: &str, arguments: &[&str]| {
        let target = url(client.outbound(), path);
        got(&[arguments, &["-o", "/dev/null", "--write-out", "%{http_code}", &target]].concat())
    };
    for (path, arguments) in [("/mute", &[][..]), ("/mute", &["--data", "x"])] {
        assert_eq!(code(path, arguments), "502");
    }
    let reset =
        server.wait_for_log(SOON, |l| l["reason"] == "upstream_reset" && l["method"] == "POST").unwrap();
    assert_eq!((&reset["status"], &reset["path"]), (&502.into(), &"/mute".into()), "{reset}");
    drop(app);
    for version in VERSIONS {
        assert_eq!(code("/", &[version]), "503", "{version}");
        assert_eq!(code("/", &[version, "--head"]), "503", "{version}");
        // Without a body in HTTP/2: curl 7.88 gives up on an upload whose answer comes first, whoever sends it.
        let body: &[&str] = if version == VERSIONS[2] { &[] } else { &["--data", "x"] };
        assert_eq!(code("/", &[&[version, "-X", "POST"], body].concat()), "503", "{version}");
    }
    let line = server.wait_for_log(SOON, |l| l["reason"] == "unreachable").unwrap();
    assert!(line["detail"].as_str().unwrap().contains("refused"), "{line}");
    // A request with a body was sent once and counts once; those without one may have been tried again.
    let posts = |reason: &str| {
        let lines = server.logs().into_iter().filter(|l| l["reason"] == reason && l["method"] == "POST");
        lines.count()
    };
    assert!(until(SOON, || (posts("unreachable") >= 3).then_some(())).is_some(), "{:?}", server.logs());
    assert_eq!((posts("upstream_reset"), posts("unreachable")), (1, 3));
    let count = |reason| {
        let labels = [("direction", "inbound"), ("reason", reason)];
        server.metrics().unwrap().count("postern_request_faults_total", &labels)
    };
    assert!(count("upstream_reset") >= 2 && count("unreachable") >= 6);
    // The client's own sidecar has carried answers; they are no faults of its side.
    let faults =
        client.metrics().unwrap().count("postern_request_faults_total", &[("direction", "outbound")]);
    assert_eq!(faults, 0);
}

/// A tool's number behind a word of its report, such as `2000` of `2000 succeeded`.
fn number_before(report: &str, word: &str) -> u64 {
    let words: Vec<&str> = report.split_whitespace().collect();
    let at = words
        .iter()
        .position(|w| w.trim_matches(',') == word)
        .unwrap_or_else(|| panic!("no {word}:\n{report}"));
    words[at - 1].parse().unwrap_or_else(|e| panic!("{e}: {} {word}:\n{report}", words[at - 1]))
}

#[test]
fn many_requests_at_once_fail_nowhere() {
    let dir = Directory::new().unwrap();
    std::fs::create_dir(dir.path().join("www")).unwrap();
    std::fs::write(dir.path().join("www/index.html"), "hello from nginx\n").unwrap();
    let nginx = Server::nginx(dir.path());
    let mesh = Mesh::start().unwrap();
    let (server, client) = mesh.pair(nginx.address, "http").unwrap();
    let target = url(client.outbound(), "/");

    // nghttp: a hundred streams at once on one connection.
    let mut nghttp = Command::new(program("nghttp", "nghttp2-client"));
    nghttp.args(["--no-verify-peer", "--multiply=100", "--stat", "--timeout=30", &target]);
    let report = run(&mut nghttp);
    assert_eq!(report.matches("hello from nginx").count(), 100, "{report}");
    assert_eq!(report.lines().filter(|l| l.contains(" 200 ")).count(), 100, "{report}");

    let h2load = |arguments: &[&str]| {
        let mut h2load = Command::new(program("h2load", "nghttp2-client"));
        run(h2load.args(["--connection-active-timeout=60"]).args(arguments).arg(&target))
    };
    for arguments in [&["-n", "2000", "-c", "8", "-m", "25"][..], &["--h1", "-n", "1000", "-c", "16"]] {
        let report = h2load(arguments);
        let requests = report.lines().find(|l| l.starts_with("requests:")).unwrap();
        let total = arguments[arguments.iter().position(|a| *a == "-n").unwrap() + 1].parse::<u64>().unwrap();
        assert_eq!(number_before(requests, "succeeded"), total, "{report}");
        let statuses = report.lines().find(|l| l.starts_with("status codes:")).unwrap();
        assert_eq!(number_before(statuses, "2xx"), total, "{report}");
    }

    let mut wrk = Command::new(program("wrk", "wrk"));
    let report =
        run(wrk.args(["--threads=1", "--connections=16", "--duration=2s", "--timeout=20s", &target]));
    assert!(number_before(&report, "requests") > 0, "{report}");
    assert!(!report.contains("Non-2xx") && !report.contains("Socket errors"), "{report}");

    // hey: a connection for each request.
    let mut hey = Command::new(program("hey", "hey"));
    let report = run(hey.args(["-n", "500", "-c", "20", "-disable-keepalive", &target]));
    assert!(report.contains("[200]\t500 responses") && !report.contains("Error"), "{report}");

    for sidecar in [&server, &client] {
        let faults = sidecar.metrics().unwrap().count("postern_request_faults_total", &[]);
        assert_eq!(faults, 0, "{}", sidecar.name());
    }
}

#[test]
fn what_is_written_is_passed_on_at_once() {
    // The app sends a part only once its client has shown that the part before has come: held back, it would never end.
    let (turns, turn) = std::sync::mpsc::channel::<()>();
    let turn = std::sync::Mutex::new(turn);
    let app = App::start(move |mut stream| {
        use std::io::{Read as _, Write as _};
        let _ = stream.read(&mut [0; 4096])?;
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
        for number in 0..10 {
            write!(stream, "8\r\ndata: {number}\n\r\n")?;
            let came = turn.lock().map(|turn| turn.recv_timeout(SOON).is_ok());
            if !came.unwrap_or(false) {
                return Ok(());
            }
        }
        stream.write_all(b"0\r\n\r\n")
    })
    .unwrap();
    let mesh = Mesh::start().unwrap();
    let (_server, client) = mesh.pair(app.address(), "http").unwrap();
    let mut lines = String::new();
    let mut curl = Command::new(program("curl", "curl"));
    curl.args(["--silent", "--no-buffer", "--max-time", "60", &url(client.outbound(), "/")]);
    let mut child = curl.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let reader = std::io::BufReader::new(child.stdout.take().unwrap());
    for line in std::io::BufRead::lines(reader) {
        writeln!(lines, "{}", line.unwrap()).unwrap();
        turns.send(()).unwrap();
    }
    assert!(child.wait().unwrap().success(), "{lines}");
    assert_eq!(lines.lines().count(), 10, "{lines}");
}
