//! Fetching files by id or by link, and making the links.

use std::path::{Path, PathBuf};

use waxwing_protocol::BlobId;
use waxwing_protocol::api::GrantRequest;
use waxwing_seal::blob_ref::BlobRef;
use waxwing_seal::share::ShareLink;

use crate::download::{self, FetchedFile, Source};
use crate::grants::Bearer;
use crate::http::Service;
use crate::{Client, ClientError, OnProgress, blob_refs, files};

/// The path of blobs on a host that serves share links as well.
const BLOBS_PATH: &str = "/v1/blobs";

/// What a share link is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShareSource {
    /// A file, which is sealed and uploaded first.
    File(PathBuf),
    /// A blob that this profile has sent or received.
    Blob(BlobId),
}

impl Client {
    /// Fetches a blob that this profile has received or sent, and opens it. `out` is the file to write, or a directory
    /// to write into under the name the sender gave. Nothing is written over: a taken name gets a number.
    ///
    /// # Errors
    /// [`ClientError::NoKey`] when this profile does not know the blob; [`ClientError::Refused`] when the service does
    /// not; [`ClientError::Unreachable`], and the same call goes on where it stopped.
    pub async fn fetch(&self, id: &BlobId, out: &Path, on: OnProgress<'_>) -> Result<FetchedFile, ClientError> {
        let reference = self.profile.read(|tx| blob_refs::get(tx, id))?;
        self.save(&reference, out, on).await
    }

    /// Fetches the blob of a reference, and opens it: see [`Self::fetch`].
    ///
    /// # Errors
    /// Those of [`Self::fetch`].
    pub async fn save(&self, reference: &BlobRef, out: &Path, on: OnProgress<'_>) -> Result<FetchedFile, ClientError> {
        let blobs_url = &self.service.info().await?.blobs_url;
        let url = format!("{}/{}", blobs_url.trim_end_matches('/'), reference.id);
        let source = Source { service: &self.service, url, bearer: Bearer::of(GrantRequest::Media) };
        download::download(source, reference, &target(reference, out), on).await
    }

    /// Makes a link with which anybody can fetch and open the file until its grant ends.
    ///
    /// # Errors
    /// [`ClientError::NoKey`] when the profile does not know the blob; those of [`Self::upload_file`].
    pub async fn share(&self, what: ShareSource, on: OnProgress<'_>) -> Result<ShareLink, ClientError> {
        let reference = match what {
            ShareSource::File(path) => self.upload_file(&path, on).await?.0,
            ShareSource::Blob(id) => self.profile.read(|tx| blob_refs::get(tx, &id))?,
        };
        let blobs_url = &self.service.info().await?.blobs_url;
        let base = blobs_url.trim_end_matches('/').strip_suffix(BLOBS_PATH);
        let base = base.ok_or_else(|| self.service.nonsense("an address of blobs that serves no links"))?;
        let request = GrantRequest::Share { blob: reference.id, lifetime_s: None };
        let grant = self.service.grant(&request).await?.grant;
        Ok(ShareLink {
            base: base.to_owned(),
            blob: reference.id,
            key: reference.key.clone(),
            header: reference.header,
            true_bytes: reference.true_bytes,
            name: reference.file_name.unwrap_or_default(),
            grant,
        })
    }
}

/// Fetches and opens the file of a share link, without an account: see [`Client::fetch`].
///
/// # Errors
/// [`ClientError::Refused`] when the grant has ended or the blob is gone; those of [`Client::fetch`].
pub async fn fetch_link(link: &ShareLink, out: &Path, on: OnProgress<'_>) -> Result<FetchedFile, ClientError> {
    let service = Service::new(&link.base)?;
    let url = format!("{}{BLOBS_PATH}/{}", link.base, link.blob);
    let source = Source { service: &service, url, bearer: Bearer::Given(link.grant.clone()) };
    let reference = link.blob_ref();
    download::download(source, &reference, &target(&reference, out), on).await
}

/// The file to write: `out` itself, or in it when it is a directory.
fn target(reference: &BlobRef, out: &Path) -> PathBuf {
    if out.is_dir() {
        out.join(files::safe_name(reference.file_name.as_deref().unwrap_or_default()))
    } else {
        out.to_owned()
    }
}
