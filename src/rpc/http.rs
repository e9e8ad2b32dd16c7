//! HTTP/1.1 as another framing of the same messages: POST for JSON-RPC, GET for health and figures.
//!
//! Owns status codes and bodies; a message goes the same way as on a plain connection. No upgrades, no HTTP/2.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jsonrpsee::types::ErrorObjectOwned;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::budget::Room;
use super::context::{Context, Dispatch};
use super::execution::{Answer, Started, start};
use super::peer::Peer;
use super::refusal::{self, NO_ID};
use super::server::Shutdown;
use super::stalling::Stalling;

mod body;

/// How many connections the listener for figures has at once.
const METRICS_CONNECTIONS: usize = 64;
/// An answer given early.
type Instead = Box<Response<Full<Bytes>>>;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a connection may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Calls, health and figures.
    Everything,
    /// Health and figures.
    Figures,
}

/// Answers `GET /metrics` and `GET /healthz`, and nothing else, over TCP, as the daemon's own user would be answered.
pub async fn serve_metrics<D: Dispatch>(listener: TcpListener, calls: Arc<D>, shutdown: Shutdown) {
    let (drain, abort) = (shutdown.drain.child_token(), shutdown.abort.clone());
    let context = Arc::new(Context::new(calls, drain.clone(), abort.clone()));
    let peer = Arc::new(Peer::own());
    let places = Arc::new(Semaphore::new(METRICS_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.cancelled() => break,
            () = abort.cancelled() => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(super::server::BACK_OFF).await;
            continue;
        };
        // Over the bound the connection is closed: a scrape is tried again.
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let serving = serve(stream, context.clone(), peer.clone(), Scope::Figures);
        context.tracker.spawn(async move {
            let _place = place;
            serving.await;
        });
    }
    drain.cancel();
    context.tracker.close();
    let limit = context.calls.config().socket.drain.duration();
    tokio::select! {
        _ = tokio::time::timeout(limit, context.tracker.wait()) => {}
        () = abort.cancelled() => {}
    }
}

/// Serves a connection to its end.
pub(super) async fn serve<D: Dispatch, S>(stream: S, context: Arc<Context<D>>, peer: Arc<Peer>, scope: Scope)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = {
        let context = context.clone();
        service_fn(move |request| {
            let (context, peer) = (context.clone(), peer.clone());
            async move { Ok::<_, Infallible>(respond(&context, &peer, scope, request).await) }
        })
    };
    let stream = TokioIo::new(Stalling::new(stream, context.bounds.write_timeout));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(context.bounds.read_timeout)
        .half_close(true)
        .max_buf_size(super::connection::UNCOUNTED)
        .serve_connection(stream, service);
    let mut connection = pin!(connection);
    let mut draining = false;
    loop {
        tokio::select! {
            // How it ended concerns the client alone, and the client knows.
            _ = connection.as_mut() => return,
            () = context.abort.cancelled() => return,
            () = context.drain.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn respond<D: Dispatch>(
    context: &Arc<Context<D>>,
    peer: &Arc<Peer>,
    scope: Scope,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match (request.uri().path(), reads) {
        ("/healthz", true) => health(&read(context, peer, "system.health").await),
        ("/metrics", true) => metrics(&read(context, peer, "system.metrics").await),
        (path @ ("/healthz" | "/metrics"), false) if scope == Scope::Figures => {
            refused_method("GET, HEAD", format!("{path} is read with GET.\n"))
        }
        _ if scope == Scope::Figures => {
            plain(StatusCode::NOT_FOUND, TEXT, "There is GET /metrics and GET /healthz here.\n")
        }
        _ if request.method() == Method::POST => post(context, peer, request.into_body()).await,
        _ if reads => plain(
            StatusCode::NOT_FOUND,
            TEXT,
            "There is GET /healthz and GET /metrics; JSON-RPC 2.0 is sent with POST to any path.\n",
        ),
        _ => refused_method("POST, GET, HEAD", "JSON-RPC 2.0 is sent with POST to any path.\n"),
    }
}

async fn post<D: Dispatch>(
    context: &Arc<Context<D>>,
    peer: &Arc<Peer>,
    body: Incoming,
) -> Response<Full<Bytes>> {
    let started = match body::collect(context, body).await {
        Err(response) => return *response,
        Ok(message) => match body::one_message(&message) {
            Err(error) => return json(StatusCode::OK, refusal::line(NO_ID, &error)),
            Ok(()) => start(&context.calls, peer, &message, &context.bounds),
        },
    };
    match finish(context, started).await {
        None => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Some(line) => {
            let mut room = context.budget.room();
            // An answer that is made already is sent also when there is no room; its reader has the write timeout.
            let _ = room.resize(line.len());
            respond_with(StatusCode::OK, JSON, Bytes::from_owner(Counted { line: line + "\n", _room: room }))
        }
    }
}

/// An answer and its share of the budget, which it gives back when it has been written.
struct Counted {
    line: String,
    _room: Room,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        self.line.as_bytes()
    }
}

/// A call goes on when its client goes away, although hyper then drops what answers.
async fn finish<D: Dispatch>(context: &Context<D>, started: Started) -> Answer {
    match started {
        Started::Answered(answer) => answer,
        Started::Running(call) => match context.tracker.spawn(call).await {
            Ok(answer) => answer,
            Err(_) => Some(refusal::line(NO_ID, &refusal::internal_error())),
        },
    }
}

/// What a method without parameters answers.
async fn read<D: Dispatch>(context: &Context<D>, peer: &Arc<Peer>, method: &str) -> String {
    let request = format!(r#"{{"jsonrpc":"2.0","id":0,"method":"{method}"}}"#);
    let started = start(&context.calls, peer, request.as_bytes(), &context.bounds);
    finish(context, started).await.unwrap_or_default()
}

#[derive(Deserialize)]
struct Read<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    message: String,
    data: Option<FailureData>,
}

#[derive(Deserialize)]
struct FailureData {
    kind: Option<String>,
}

/// The result, or the answer to give instead.
fn result(answer: &str) -> Result<&RawValue, Instead> {
    let read = serde_json::from_str::<Read<'_>>(answer).ok();
    let (result, error) = read.map_or((None, None), |read| (read.result, read.error));
    result.ok_or_else(|| {
        let kind = error.as_ref().and_then(|error| error.data.as_ref()?.kind.as_deref());
        let forbidden = kind == Some("forbidden");
        let status = if forbidden { StatusCode::FORBIDDEN } else { StatusCode::SERVICE_UNAVAILABLE };
        let message = error.map_or_else(|| "internal error".into(), |error| error.message);
        Box::new(plain(status, TEXT, message + "\n"))
    })
}

fn health(answer: &str) -> Response<Full<Bytes>> {
    #[derive(Deserialize)]
    struct Health {
        status: String,
    }
    let result = match result(answer) {
        Ok(result) => result,
        Err(response) => return *response,
    };
    let status = serde_json::from_str::<Health>(result.get()).map(|health| health.status);
    let serves = status.is_ok_and(|status| status != "unavailable");
    let status = if serves { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, result.get().to_owned())
}

fn metrics(answer: &str) -> Response<Full<Bytes>> {
    #[derive(Deserialize)]
    struct Metrics {
        text: String,
    }
    match result(answer).map(|result| serde_json::from_str::<Metrics>(result.get())) {
        Ok(Ok(metrics)) => plain(StatusCode::OK, PROMETHEUS, metrics.text),
        Ok(Err(_)) => plain(StatusCode::SERVICE_UNAVAILABLE, TEXT, "internal error\n"),
        Err(response) => *response,
    }
}

fn json(status: StatusCode, line: String) -> Response<Full<Bytes>> {
    plain(status, JSON, line + "\n")
}

fn plain(status: StatusCode, kind: &'static str, text: impl Into<String>) -> Response<Full<Bytes>> {
    respond_with(status, kind, text.into().into())
}

fn respond_with(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn refused_method(allowed: &'static str, text: impl Into<String>) -> Response<Full<Bytes>> {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// An answer to a request whose body is not read to its end.
fn closing(status: StatusCode, error: &ErrorObjectOwned) -> Instead {
    let mut response = json(status, refusal::line(NO_ID, error));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Box::new(response)
}

/// Fails after `limit`, as reading a body that stands still does.
async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> io::Result<T> {
    tokio::time::timeout(limit, future).await.map_err(|_| io::ErrorKind::TimedOut.into())
}
