//! Connections of every kind, on real sockets.

mod entries;
mod floods;

use super::*;
use axum::Extension;
use axum::routing::get;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;

/// A listener that says whom it takes its client for.
struct Listening {
    address: SocketAddr,
    /// Requests that came to a handler.
    handled: Arc<AtomicUsize>,
    _stop: oneshot::Sender<()>,
}

/// Serves one connection at a time, until it is dropped.
async fn start(entry: Entry) -> Listening {
    start_with(entry, Limits { connections_max: 1, head_timeout: Duration::from_millis(50), ..Limits::default() }).await
}

async fn start_with(entry: Entry, limits: Limits) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let handled = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&handled);
    let here = get(async move |Extension(client): Extension<ClientAddress>| {
        counted.fetch_add(1, Relaxed);
        format!("{} is here", client.0)
    });
    let router = Router::new().route("/", here);
    tokio::spawn(async move {
        let stopping = async move { drop(stopped.await) };
        serve(listener, router, None, limits, entry, stopping).await.ended().await;
    });
    Listening { address, handled, _stop: stop }
}

impl Listening {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Whoever connects and says nothing, or the beginning of an HTTP/2 preface, must not keep others out.
#[tokio::test]
async fn silent_connections_give_their_place_back() {
    let listening = start(Entry::default()).await;
    for said in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\n"] {
        let mut silent = listening.connect().await;
        silent.write_all(said).await.unwrap();
        let answer = ask(&mut listening.connect().await).await;
        assert!(answer.ends_with("here"), "after {said:?}: {answer}");
        // An answer (408), an end or a reset: whichever it is, the connection has ended.
        let _ = silent.read_to_end(&mut Vec::new()).await;
    }
}

/// Limits for each address rest on it.
#[tokio::test]
async fn every_request_carries_its_clients_address() {
    let listening = start(Entry::default()).await;
    let mut stream = listening.connect().await;
    let own = stream.local_addr().unwrap();
    let answer = ask(&mut stream).await;
    assert!(answer.ends_with(&format!("{own} is here")), "{answer}");
}
