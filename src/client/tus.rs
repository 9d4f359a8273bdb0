//! The upload wire: tus 1.0 (tus.io, protocol 1.0.0), core and creation, as a client speaks it.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, StatusCode};
use reqwest::{Body, Method, RequestBuilder, Response, Url};
use waxwing_protocol::BlobId;
use waxwing_protocol::headers::WAXWING_BLOB;

use crate::ClientError;
use crate::http::{IDLE_TIMEOUT, SMALL_REQUEST_TIMEOUT, Service};
use crate::progress::Meter;

const TUS_RESUMABLE: &str = "tus-resumable";
const UPLOAD_OFFSET: &str = "upload-offset";
const UPLOAD_LENGTH: &str = "upload-length";

/// How far an upload is, by the server's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Bytes that the server holds durably.
    pub(crate) offset: u64,
    /// The blob, when the upload is complete.
    pub(crate) blob: Option<BlobId>,
}

/// One upload, by its URL, as the holder of a grant sees it.
pub(crate) struct Tus<'a> {
    pub(crate) service: &'a Service,
    pub(crate) grant: String,
}

impl Tus<'_> {
    /// Creates an upload of `length` bytes and gives its URL.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::Refused`] or [`ClientError::Nonsense`].
    pub(crate) async fn create(&self, uploads_url: &str, length: u64) -> Result<String, ClientError> {
        let request = self.request(Method::POST, uploads_url).header(UPLOAD_LENGTH, length).header(CONTENT_LENGTH, 0);
        let response = self.service.send(request.timeout(SMALL_REQUEST_TIMEOUT)).await?;
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| self.service.nonsense("an upload without a Location"))?;
        let base = Url::parse(uploads_url).map_err(|_| self.service.nonsense("an upload address that is none"))?;
        let url = base.join(location).map_err(|_| self.service.nonsense("a Location that is no address"))?;
        // The grant goes wherever this points, so it must not point out of TLS.
        if url.scheme() != base.scheme() {
            return Err(self.service.nonsense("a Location of another scheme"));
        }
        Ok(url.into())
    }

    /// Asks how far the upload is; `None` when the server no longer knows it.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::Refused`] or [`ClientError::Nonsense`].
    pub(crate) async fn head(&self, url: &str, length: u64) -> Result<Option<Standing>, ClientError> {
        let request = self.request(Method::HEAD, url).timeout(SMALL_REQUEST_TIMEOUT);
        let response = match self.service.send(request).await {
            Err(ClientError::Refused { problem, .. }) if matches!(problem.status, 404 | 410) => return Ok(None),
            other => other?,
        };
        let declared = self.number(response.headers(), UPLOAD_LENGTH)?;
        if declared != length {
            return Err(self.service.nonsense(format!("an upload of {declared} bytes where one of {length} was made")));
        }
        self.standing(response.headers(), length).map(Some)
    }

    /// Appends a part of `part_bytes` at `offset`. `moved` counts bytes of the body as they leave: a request of which
    /// nothing moves for a minute is given up.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::Refused`] or [`ClientError::Nonsense`].
    pub(crate) async fn append(
        &self,
        url: &str,
        offset: u64,
        part_bytes: u64,
        length: u64,
        body: Body,
        moved: &Meter,
    ) -> Result<Standing, ClientError> {
        let request = self
            .request(Method::PATCH, url)
            .header(CONTENT_TYPE, "application/offset+octet-stream")
            .header(UPLOAD_OFFSET, offset)
            .header(CONTENT_LENGTH, part_bytes)
            .body(body);
        let response = self.while_moving(request, moved).await?;
        if response.status() != StatusCode::NO_CONTENT {
            return Err(self.service.nonsense(format!("status {} to a part", response.status())));
        }
        self.standing(response.headers(), length)
    }

    /// Gives up an upload. The server frees what it holds; should the request fail, expiry does.
    pub(crate) async fn terminate(&self, url: &str) {
        let request = self.request(Method::DELETE, url).timeout(SMALL_REQUEST_TIMEOUT);
        if let Err(error) = self.service.send(request).await {
            tracing::debug!(%error, "an abandoned upload is left to expire");
        }
    }

    async fn while_moving(&self, request: RequestBuilder, moved: &Meter) -> Result<Response, ClientError> {
        let mut sending = std::pin::pin!(self.service.send(request));
        let mut last = moved.get();
        loop {
            match tokio::time::timeout(IDLE_TIMEOUT, &mut sending).await {
                Ok(done) => return done,
                Err(_) if moved.get() == last => return Err(self.service.lost("nothing moved for a minute")),
                Err(_) => last = moved.get(),
            }
        }
    }

    fn request(&self, method: Method, url: &str) -> RequestBuilder {
        self.service.http().request(method, url).bearer_auth(&self.grant).header(TUS_RESUMABLE, "1.0.0")
    }

    fn standing(&self, headers: &HeaderMap, length: u64) -> Result<Standing, ClientError> {
        let offset = self.number(headers, UPLOAD_OFFSET)?;
        if offset > length {
            return Err(self.service.nonsense(format!("an offset of {offset} in an upload of {length} bytes")));
        }
        let blob = headers.get(WAXWING_BLOB).map(|value| value.to_str().ok().and_then(|text| text.parse().ok()));
        match blob {
            Some(None) => Err(self.service.nonsense("a blob id that is none")),
            Some(blob) => Ok(Standing { offset, blob }),
            None => Ok(Standing { offset, blob: None }),
        }
    }

    fn number(&self, headers: &HeaderMap, name: &str) -> Result<u64, ClientError> {
        let number = headers.get(name).and_then(|value| value.to_str().ok()?.parse().ok());
        number.ok_or_else(|| self.service.nonsense(format!("no number in {name}")))
    }
}
