//! Flags and environment over the configuration file: one struct comes out, and where each value came from no longer matters.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use postern_config::file::proxy::{
    Admin, Announce, Inbound, LogFormat, Mtls, Outbound, Protocol, ProxyConfig,
};
use postern_config::file::{self, Span};
use postern_proxy::identity::join::JoinSource;

const EXAMPLES: &str = "\
Examples:
  postern-proxy --join @payments.join --inbound 0.0.0.0:15006=127.0.0.1:8080
  postern-proxy --join @web.join --outbound 127.0.0.1:9001=shop.payments
  postern-proxy --config proxy.yaml
  postern-proxy check -f proxy.yaml
  postern-proxy admin connections

Exit codes: 0 stopped in order, 1 refused or failed, 2 wrong usage.";

/// Terminates and originates mutual TLS for the workload beside it, with an identity that it fetches and rotates itself.
#[derive(Debug, Parser)]
#[command(name = "postern-proxy", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Reads a configuration file and says what is wrong with it, without running anything.
    Check {
        /// The file.
        #[arg(short, long)]
        file: PathBuf,
        /// How to answer.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Asks a running proxy, or tells it something, over its admin socket.
    Admin(Box<AdminArgs>),
}

/// A question to a running proxy.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  postern-proxy admin connections --limit 20
  postern-proxy admin explain --peer spiffe://corp.example/ns/shop/sa/web --source-ip 10.0.0.7 --port 8080
  postern-proxy admin log debug
  postern-proxy admin get /upstreams --output json")]
pub(crate) struct AdminArgs {
    #[command(subcommand)]
    pub(crate) question: Question,
    /// The proxy's admin socket.
    #[arg(long, global = true, env = "POSTERN_ADMIN_SOCKET", value_name = "PATH", default_value = Admin::DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    /// How to answer.
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Question {
    /// The answer to GET PATH; `/` lists what there is.
    Get {
        /// Such as /upstreams.
        path: String,
    },
    /// The configuration in force.
    Config,
    /// The own certificate, when it is renewed, and who is trusted.
    Identity,
    /// Open connections, the oldest first.
    Connections {
        /// How many at most.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Go on behind this one: `next` of the last answer.
        #[arg(long, value_name = "ID")]
        after: Option<String>,
    },
    /// Services, who must answer there, and how the endpoints do.
    Upstreams,
    /// The policies in force.
    Policy,
    /// The log level, or another one from now on.
    Log {
        /// error, warn, info, debug, trace, or a filter.
        level: Option<String>,
    },
    /// What the policy says to a connection or a request, and why.
    Explain {
        /// Who would connect.
        #[arg(long, value_name = "SPIFFE-ID")]
        peer: String,
        /// From where.
        #[arg(long, value_name = "IP")]
        source_ip: String,
        /// To which of the workload's ports.
        #[arg(long)]
        port: u16,
        /// At which address; left out, the first inbound listener's.
        #[arg(long, value_name = "IP")]
        destination_ip: Option<String>,
        /// With which server name.
        #[arg(long)]
        sni: Option<String>,
        /// A request's method; with this or one of the following, it is about a request.
        #[arg(long)]
        method: Option<String>,
        /// Its path.
        #[arg(long)]
        path: Option<String>,
        /// Its Host.
        #[arg(long)]
        host: Option<String>,
        /// One of its header lines; may be given more than once.
        #[arg(long, value_name = "NAME: VALUE")]
        header: Vec<String>,
    },
    /// Begins the drain, as SIGTERM does.
    Drain,
}

/// How a command answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// What is given on the command line or in the environment lies over the file.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The configuration file.
    #[arg(short, long, env = "POSTERN_CONFIG")]
    config: Option<PathBuf>,
    /// The join string: @FILE, or - for standard input.
    #[arg(long, value_name = "@FILE|-")]
    join: Option<JoinSource>,
    /// A file with the join string.
    #[arg(long, env = "POSTERN_JOIN_FILE", hide_env_values = true, value_name = "FILE")]
    join_file: Option<PathBuf>,
    /// The control plane's address, where it differs from the join string's.
    #[arg(long, env = "POSTERN_CONTROL", value_name = "HOST:PORT")]
    control: Option<String>,
    /// mTLS in, plain to the app; may be given more than once. `,announce=SERVICE[@HOST:PORT]` tells the control plane.
    #[arg(long, value_name = "LISTEN=APP[,protocol=P][,mtls=permissive][,announce=SERVICE[@HOST:PORT]]", value_parser = parse_inbound)]
    inbound: Vec<Inbound>,
    /// Plain in, mTLS out to a service; may be given more than once. P is tcp (the default), http, grpc or auto.
    #[arg(long, value_name = "LISTEN=SERVICE|LISTEN=HOST:PORT,SPIFFE-ID[,protocol=P]", value_parser = parse_outbound)]
    outbound: Vec<Outbound>,
    /// Wanted lifetime of a certificate, such as 1h.
    #[arg(long, env = "POSTERN_TTL")]
    ttl: Option<Span>,
    /// A directory (0700) that keeps key and certificate over a restart.
    #[arg(long, env = "POSTERN_IDENTITY_CACHE", value_name = "DIR")]
    identity_cache: Option<PathBuf>,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "POSTERN_METRICS", value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,
    /// Where operators' Unix socket is.
    #[arg(long, env = "POSTERN_ADMIN_SOCKET", value_name = "PATH")]
    admin_socket: Option<PathBuf>,
    /// Where a read-only part of it is served over TCP.
    #[arg(long, env = "POSTERN_ADMIN_LISTEN", value_name = "IP:PORT")]
    admin_listen: Option<SocketAddr>,
    /// The Unix socket over which a new process takes over from a running one.
    #[arg(long, env = "POSTERN_HANDOVER_SOCKET", value_name = "PATH")]
    handover_socket: Option<PathBuf>,
    /// text or json.
    #[arg(long, env = "POSTERN_LOG_FORMAT")]
    log_format: Option<LogFormat>,
    /// error, warn, info, debug, trace, or a filter.
    #[arg(long, env = "POSTERN_LOG_LEVEL")]
    log_level: Option<String>,
    /// An OTLP/gRPC collector for traces and metrics.
    #[arg(long, env = "POSTERN_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// How long new connections are still taken after SIGTERM, while /readyz already fails.
    #[arg(long, env = "POSTERN_PRE_DRAIN")]
    pre_drain: Option<Span>,
    /// How long open connections may go on after that.
    #[arg(long, env = "POSTERN_DRAIN_TIMEOUT")]
    drain_timeout: Option<Span>,
    /// Threads that carry traffic; 0 takes one per processor.
    #[arg(long, env = "POSTERN_WORKERS")]
    workers: Option<usize>,
    /// How to say that this proxy is ready.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

impl RunArgs {
    /// The configuration in force, checked, and where the join string comes from.
    pub(crate) fn resolve(self) -> anyhow::Result<(ProxyConfig, Option<JoinSource>)> {
        let path = self.config.clone();
        let mut config: ProxyConfig = path.as_deref().map(file::load).transpose()?.unwrap_or_default();
        let join = self.join.clone().or_else(|| self.join_file.clone().map(JoinSource::File));
        self.lay_over(&mut config);
        let named = |error| match &path {
            Some(path) => anyhow::anyhow!("{}: {error}", path.display()),
            None => anyhow::anyhow!("{error}"),
        };
        config.check().map_err(named)?;
        let from_file = config.control.join_file.as_ref().map(|p| match p.as_os_str() == "-" {
            true => JoinSource::Stdin,
            false => JoinSource::File(p.clone()),
        });
        if config.control.attest.is_some() && join.is_some() {
            anyhow::bail!("a join string was given, and `control.attest` as well: which of them is meant?");
        }
        Ok((config, join.or(from_file)))
    }

    fn lay_over(self, config: &mut ProxyConfig) {
        fn set<T>(field: &mut T, given: Option<T>) {
            if let Some(given) = given {
                *field = given;
            }
        }
        set(&mut config.control.address, self.control.map(Some));
        set(&mut config.identity.ttl, self.ttl);
        set(&mut config.identity.cache, self.identity_cache.map(Some));
        set(&mut config.metrics.listen, self.metrics);
        set(&mut config.admin.socket, self.admin_socket.map(Some));
        set(&mut config.admin.listen, self.admin_listen.map(Some));
        set(&mut config.handover.socket, self.handover_socket.map(Some));
        set(&mut config.log.format, self.log_format);
        set(&mut config.log.level, self.log_level);
        set(&mut config.otlp.endpoint, self.otlp_endpoint.map(Some));
        set(&mut config.drain.pre_drain, self.pre_drain);
        set(&mut config.drain.timeout, self.drain_timeout);
        set(&mut config.workers, self.workers);
        config.inbound.extend(self.inbound);
        config.outbound.extend(self.outbound);
    }
}

fn parse_inbound(text: &str) -> Result<Inbound, String> {
    let usage = "write LISTEN=APP, such as 0.0.0.0:15006=127.0.0.1:8080";
    let (listen, rest) = text.split_once('=').ok_or(usage)?;
    let mut options = rest.split(',');
    let app = options.next().unwrap_or_default().to_owned();
    let listen = listen.parse().map_err(|_| format!("{listen:?} is not IP:PORT; {usage}"))?;
    let mut inbound = Inbound { listen, app, protocol: Protocol::Tcp, mtls: Mtls::Strict, announce: None };
    for option in options {
        if let Some(protocol) = option.strip_prefix("protocol=") {
            inbound.protocol = protocol.parse()?;
        } else if option == "mtls=permissive" {
            inbound.mtls = Mtls::Permissive;
        } else if let Some(announced) = option.strip_prefix("announce=") {
            let (service, address) =
                announced.split_once('@').map_or((announced, None), |(s, a)| (s, Some(a.to_owned())));
            inbound.announce = Some(Announce { service: service.to_owned(), address });
        } else {
            return Err(format!(
                "unknown option {option:?}; there are `protocol=`, `mtls=permissive` and `announce=`"
            ));
        }
    }
    Ok(inbound)
}

fn parse_outbound(text: &str) -> Result<Outbound, String> {
    let usage = "write LISTEN=SERVICE, such as 127.0.0.1:9001=shop.payments, or LISTEN=HOST:PORT,spiffe://…";
    let (listen, rest) = text.split_once('=').ok_or(usage)?;
    let listen = listen.parse().map_err(|_| format!("{listen:?} is not IP:PORT; {usage}"))?;
    let mut options = rest.split(',');
    let to = options.next().unwrap_or_default().to_owned();
    let mut outbound =
        Outbound { listen, service: None, connect: None, identity: None, protocol: Protocol::Tcp };
    for option in options {
        if let Some(protocol) = option.strip_prefix("protocol=") {
            outbound.protocol = protocol.parse()?;
        } else {
            let id = option.parse().map_err(|e| format!("{option:?} is not a SPIFFE ID: {e}"))?;
            outbound.identity = Some(id);
        }
    }
    match outbound.identity {
        Some(_) => outbound.connect = Some(to),
        None => outbound.service = Some(to),
    }
    Ok(outbound)
}
