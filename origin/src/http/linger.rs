//! Answers that arrive although the request was not read to its end.
//!
//! A server that refuses an upload after its headers and closes the connection at once makes the client's network stack
//! throw away the answer together with the connection: the client sees a reset, not the reason. So the rest of a body
//! that nobody read is read on for a little while, within a bound, beside the answer.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::EXPECT;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;

/// Bytes of an unread body that are read and thrown away at most: a part, as clients send them. Who is refused for want of
/// room should learn that, and not try again.
const LINGER_BYTES_MAX: usize = 16 << 20;

/// How long that may take.
const LINGER_TIME_MAX: Duration = Duration::from_secs(2);

/// Lets the request's body linger.
pub(super) async fn linger(request: Request) -> Request {
    if request.body().is_end_stream() {
        return request;
    }
    // A client that waits for leave to send has sent nothing; reading would give it that leave.
    let waits = request.headers().contains_key(EXPECT);
    request.map(|body| Body::new(LingeringBody { body: Some(body), begun: !waits }))
}

/// A body that, dropped before its end, is read on for a while.
struct LingeringBody {
    /// `None` once it has ended.
    body: Option<Body>,
    /// Whether the client is sending.
    begun: bool,
}

impl HttpBody for LingeringBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.begun = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(context);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for LingeringBody {
    fn drop(&mut self) {
        let unread = self.body.take().filter(|body| self.begun && !body.is_end_stream());
        if let Some(body) = unread
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(tokio::time::timeout(LINGER_TIME_MAX, throw_away(body)));
        }
    }
}

async fn throw_away(mut body: Body) {
    let mut left = LINGER_BYTES_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(bytes) else { return };
        left = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use tokio::sync::mpsc;

    /// A request whose body comes when the test says.
    fn request(headers: &[(&str, &str)]) -> (mpsc::Sender<Result<Bytes, axum::Error>>, Request) {
        let (pieces, content) = mpsc::channel(1);
        let content = stream::unfold(content, |mut content| async move { Some((content.recv().await?, content)) });
        let builder = headers.iter().fold(Request::builder(), |builder, (name, value)| builder.header(*name, *value));
        (pieces, builder.body(Body::from_stream(content)).unwrap())
    }

    #[tokio::test]
    async fn a_refused_body_is_read_on_within_a_bound() {
        let (pieces, request) = request(&[]);
        drop(linger(request).await);
        let mut taken = 0;
        while pieces.send(Ok(Bytes::from(vec![0; 65_536]))).await.is_ok() {
            taken += 65_536;
        }
        assert!((LINGER_BYTES_MAX..LINGER_BYTES_MAX + 4 * 65_536).contains(&taken), "{taken}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_nothing_more_is_not_waited_for() {
        let (pieces, request) = request(&[]);
        drop(linger(request).await);
        pieces.send(Ok(Bytes::from_static(b"one"))).await.unwrap();
        pieces.closed().await;
    }

    /// Reading would tell it to go on.
    #[tokio::test]
    async fn a_client_that_waits_for_leave_is_not_read() {
        let (pieces, request) = request(&[("expect", "100-continue")]);
        drop(linger(request).await);
        pieces.closed().await;
        assert!(pieces.send(Ok(Bytes::new())).await.is_err());
    }

    #[tokio::test]
    async fn a_body_that_was_read_is_left_alone() {
        let (pieces, request) = request(&[]);
        let body = linger(request).await.into_body();
        pieces.send(Ok(Bytes::from_static(b"all"))).await.unwrap();
        drop(pieces);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "all");
    }
}
