//! HTTP as this proxy carries it. The only place, with `admin` and the control plane's client, that names hyper.
//!
//! # The life of a request
//!
//! 1. [`guard`]: its bytes are read strictly before the HTTP library sees them; a peer that is too slow is noticed.
//! 2. [`serve`]: one connection's requests, HTTP/1.1 or HTTP/2, each given to a handler; drain; tunnels.
//! 3. [`inbound`] or [`outbound`], the handlers: [`request`] says what is asked for in one spelling, [`headers`] removes what
//!    ends at this hop and what only a proxy may say, policy judges, [`forward`] finds who answers.
//! 4. [`pool`]: a connection to the app or to a peer, opened or taken up again; the answer streams back as a [`Body`].
//! 5. [`refuse`]: the answers that this proxy gives itself, each with a word of a closed set.

use std::convert::Infallible;
use std::rc::Rc;

use hyper::rt::Executor;

mod body;
pub mod cork;
pub mod fetch;
pub mod forward;
pub mod guard;
pub mod headers;
pub mod inbound;
pub mod introduce;
pub mod note;
pub mod outbound;
pub mod pool;
pub mod refuse;
pub mod request;
pub mod serve;
mod shape;
pub mod sniff;
pub mod tunnel;

pub use body::Body;

/// A request on its way through this proxy.
pub type Request = ::http::Request<Body>;
/// An answer on its way back.
pub type Response = ::http::Response<Body>;

/// The versions that are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1, and 1.0 from those who speak no other.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// The word that operators see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
        }
    }
}

/// Whatever answers the requests of one connection.
pub trait Handler: 'static {
    /// Answers one request, boxed: it goes through many hands. Errors are answers too.
    fn handle(self: Rc<Self>, request: Box<Request>) -> impl Future<Output = Response> + 'static;

    /// Whether the last answer made the connection a tunnel.
    fn became_tunnel(&self) -> bool {
        false
    }

    /// How much one HTTP/2 connection may have under way to this side.
    fn flow(&self) -> Flow {
        Flow::MESH
    }
}

/// How much one HTTP/2 connection may have under way to this side, before it is read.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    /// Streams, where the limits do not say fewer.
    pub streams: u32,
    /// Bytes of one stream.
    pub stream_window: u32,
    /// Bytes of all streams.
    pub connection_window: u32,
}

impl Flow {
    /// From a peer that has proven who it is.
    pub const MESH: Self = Self { streams: u32::MAX, stream_window: 1 << 20, connection_window: 4 << 20 };
    /// From anybody: Istio's defaults for a gateway.
    pub const EDGE: Self = Self { streams: 100, stream_window: 64 << 10, connection_window: 1 << 20 };
}

/// Runs the HTTP library's tasks on the worker's own thread.
#[derive(Debug, Clone, Copy)]
struct OnThisThread;

impl<F> Executor<F> for OnThisThread
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, task: F) {
        // Ends with its connection: the library's tasks watch it.
        tokio::task::spawn_local(task);
    }
}

/// A handler's answer as the library wants it.
type Answered = Result<Response, Infallible>;
