//! Uploading one blob: parts that resume, until the server has all of it.
//!
//! Networks end in the middle of things. So the blob goes in parts; after a failure the server is asked how much it
//! holds, and sealing goes on from there, with the same key and the same bytes. The upload's URL is stored before the
//! first part, so that another process can do the same.
//!
//! Promises: the id of the blob is computed here, over the sealed bytes, and must be the server's too. A file that
//! changed since it was planned is sealed under a new key, from its beginning. Once a certain number of tries in a row
//! moved nothing, [`ClientError::Interrupted`] names the command that goes on.

use std::path::Path;
use std::time::{Duration, Instant};

use waxwing_protocol::BlobId;
use waxwing_protocol::api::GrantRequest;
use waxwing_seal::blob::SealPlan;

use crate::account::now;
use crate::grants::Bearer;
use crate::planning::{self, PLAN_TRIES, discard};
use crate::progress::Meter;
use crate::sealing::{SealError, SealedFile, Sealing};
use crate::transfer::{self, TransferId, TransferRow};
use crate::tus::{Standing, Tus};
use crate::{Client, ClientError, OnProgress, Progress};

/// Bytes of a part: what one request carries, and what an origin syncs before it acknowledges.
pub(crate) const PART_BYTES: u64 = 8 << 20;

/// What an upload took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UploadReport {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of the sealed blob.
    pub sealed_bytes: u64,
    /// Where this upload last went on, when the server held a part of it already.
    pub resumed_at: Option<u64>,
    /// Time spent reading, checking, sealing and hashing; most of it while uploading.
    pub seal: Duration,
    /// Time from the first request to the last answer.
    pub upload: Duration,
}

/// Why an attempt ended without a blob.
enum Setback {
    /// The file changed: another plan is needed.
    Changed,
    /// The server or the file failed.
    Failed(ClientError),
}

impl From<ClientError> for Setback {
    fn from(error: ClientError) -> Self {
        Self::Failed(error)
    }
}

/// Uploads the blob of the transfer `id`; its row follows every step.
///
/// # Errors
/// [`ClientError::Interrupted`] when the server stays away; [`ClientError::KeepsChanging`] when the file does not hold
/// still; others as they come.
pub(crate) async fn upload(
    client: &Client,
    id: TransferId,
    row: &mut TransferRow,
    on: OnProgress<'_>,
) -> Result<(BlobId, UploadReport), ClientError> {
    for _ in 0..PLAN_TRIES {
        let upload = Upload { client, id, plan: row.plan()?, on, report: UploadReport::default() };
        match upload.run(row).await {
            Ok(done) => return Ok(done),
            Err(Setback::Failed(error)) => return Err(client.interrupted(id, row.path(), error)),
            Err(Setback::Changed) => replan(client, id, row, on).await?,
        }
    }
    Err(ClientError::KeepsChanging { path: row.path().to_owned() })
}

/// Begins the transfer again with what the file is now, under a new key.
pub(crate) async fn replan(
    client: &Client,
    id: TransferId,
    row: &mut TransferRow,
    on: OnProgress<'_>,
) -> Result<(), ClientError> {
    let planned = planning::plan(&client.profile, row.path(), on).await?;
    let old = std::mem::replace(row, row.replanned(&planned));
    client.profile.write(|tx| transfer::put(tx, id, row))?;
    discard(&old.digests_path(&client.profile));
    if let Some(url) = old.upload_url {
        terminate(client, &url).await;
    }
    Ok(())
}

/// Ends an upload that nobody will finish. A failure here costs the server a day's disk and us nothing.
pub(crate) async fn terminate(client: &Client, url: &str) {
    if let Ok(grant) = Bearer::of(GrantRequest::Upload).grant(&client.service, now()).await {
        Tus { service: &client.service, grant }.terminate(url).await;
    }
}

/// One plan's upload.
struct Upload<'a> {
    client: &'a Client,
    id: TransferId,
    plan: SealPlan,
    on: OnProgress<'a>,
    report: UploadReport,
}

impl Upload<'_> {
    async fn run(mut self, row: &mut TransferRow) -> Result<(BlobId, UploadReport), Setback> {
        let started = Instant::now();
        self.report.file_bytes = self.plan.layout.true_bytes();
        self.report.sealed_bytes = self.plan.layout.sealed_bytes();
        let limit = self.client.service.info().await?.blob_bytes_max;
        if self.report.sealed_bytes > limit {
            let (path, server) = (row.path().to_owned(), self.client.service.server().to_owned());
            let sealed_bytes = self.report.sealed_bytes;
            return Err(ClientError::OverLimit { path, server, sealed_bytes, limit }.into());
        }

        let mut sealed = Some(SealedFile::open(row.path(), &row.digests_path(&self.client.profile), &self.plan)?);
        let mut bearer = Bearer::of(GrantRequest::Upload);
        let backoff = self.client.service.backoff();
        let (mut setbacks, mut farthest) = (0, 0);
        loop {
            let mut acknowledged = farthest;
            let error = match self.attempt(row, &mut sealed, &mut bearer, &mut acknowledged).await {
                Ok(blob) => {
                    self.report.upload = started.elapsed();
                    self.report.seal = sealed.map(|sealed| sealed.spent()).unwrap_or_default();
                    return Ok((blob, self.report));
                }
                Err(Setback::Failed(error)) => error,
                Err(changed) => return Err(changed),
            };
            setbacks = if acknowledged > farthest { 1 } else { setbacks + 1 };
            farthest = acknowledged;
            let again = error.is_transient() || needs_look(&error) || (needs_grant(&error) && bearer.refused());
            if !again || setbacks >= backoff.tries {
                return Err(error.into());
            }
            let delay = backoff.pause(setbacks, &error);
            (self.on)(Progress::Waiting { attempt: setbacks, delay, reason: error.to_string() });
            tokio::time::sleep(delay).await;
        }
    }

    /// Uploads from where the server stands to the end. `acknowledged` follows what the server holds.
    async fn attempt(
        &mut self,
        row: &mut TransferRow,
        sealed: &mut Option<SealedFile>,
        bearer: &mut Bearer,
        acknowledged: &mut u64,
    ) -> Result<BlobId, Setback> {
        let grant = bearer.grant(&self.client.service, now()).await?;
        let tus = Tus { service: &self.client.service, grant };
        let (url, standing) = self.standing(&tus, row).await?;
        self.report.resumed_at = (standing.offset > 0).then_some(standing.offset);
        *acknowledged = standing.offset.max(*acknowledged);

        let file = sealed.take().expect("every attempt gives the file back");
        let sealing = Sealing::start(file, standing.offset);
        let sent = self.send_parts(&tus, &url, standing, &sealing, acknowledged).await;
        let (file, sealed_all) = sealing.end(sent.is_ok()).await;
        let ours = file.blob_id();
        *sealed = Some(file);
        // That the file changed explains a request that broke off, not the other way round.
        match sealed_all {
            Ok(()) => {}
            Err(SealError::Changed(changed)) => {
                tracing::info!(transfer.id = %self.id, "{changed}: it is sealed again under a new key");
                return Err(Setback::Changed);
            }
            Err(SealError::Client(error)) => return Err(error.into()),
        }
        let theirs = self.complete(&tus, &url, sent?).await?;
        let ours = ours.expect("a blob of which every part was sent is sealed to its end");
        if ours != theirs {
            // What the server holds is not what was sent: nothing can be built on it.
            row.upload_url = None;
            self.client.profile.write(|tx| transfer::put(tx, self.id, row))?;
            let server = self.client.service.server().to_owned();
            return Err(ClientError::WrongBlob { server, expected: ours, actual: theirs }.into());
        }
        Ok(ours)
    }

    /// Where the server stands with this upload; creates one when there is none (any more).
    async fn standing(&self, tus: &Tus<'_>, row: &mut TransferRow) -> Result<(String, Standing), ClientError> {
        let length = self.plan.layout.sealed_bytes();
        if let Some(url) = &row.upload_url
            && let Some(standing) = tus.head(url, length).await?
        {
            return Ok((url.clone(), standing));
        }
        let url = tus.create(&self.client.service.info().await?.uploads_url, length).await?;
        row.upload_url = Some(url.clone());
        self.client.profile.write(|tx| transfer::put(tx, self.id, row))?;
        Ok((url, Standing { offset: 0, blob: None }))
    }

    async fn send_parts(
        &self,
        tus: &Tus<'_>,
        url: &str,
        mut standing: Standing,
        sealing: &Sealing,
        acknowledged: &mut u64,
    ) -> Result<Standing, ClientError> {
        let total = self.plan.layout.sealed_bytes();
        while standing.offset < total {
            let start = standing.offset;
            // Parts end at multiples of their size, whatever a resume began with.
            let end = ((start / PART_BYTES + 1) * PART_BYTES).min(total);
            let sent = Meter::default();
            let body = reqwest::Body::wrap_stream(sealing.part(end - start, &sent));
            let append = tus.append(url, start, end - start, total, body, &sent);
            let tell = |done| self.tell(start + done);
            standing = sent.report_while(append, tell).await?;
            if standing.offset != end {
                let service = &self.client.service;
                return Err(service.nonsense(format!("offset {} after a part that ends at {end}", standing.offset)));
            }
            *acknowledged = end;
        }
        self.tell(total);
        Ok(standing)
    }

    /// The blob id of a complete upload. The answer that told it may have been lost; HEAD tells it again.
    async fn complete(&self, tus: &Tus<'_>, url: &str, standing: Standing) -> Result<BlobId, ClientError> {
        if let Some(blob) = standing.blob {
            return Ok(blob);
        }
        let again = tus.head(url, self.plan.layout.sealed_bytes()).await?;
        let blob = again.and_then(|standing| standing.blob);
        blob.ok_or_else(|| self.client.service.nonsense("a complete upload without its blob id"))
    }

    fn tell(&self, done: u64) {
        let total = self.plan.layout.sealed_bytes();
        (self.on)(Progress::Uploading { done, total, resumed_at: self.report.resumed_at });
    }
}

/// Whether the server stands elsewhere with this upload than it did a moment ago, or no longer knows it: another process
/// went on with it, or it expired. Asking again tells.
fn needs_look(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { problem, .. } if matches!(problem.status, 404 | 409 | 410))
}

/// Whether the grant ended: amid an upload of hours it does, and a new one goes on where it ended.
pub(crate) fn needs_grant(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { problem, .. } if problem.status == 401)
}

impl Client {
    /// An error that may pass, with the command that goes on; others as they are.
    pub(crate) fn interrupted(&self, transfer: TransferId, path: &Path, error: ClientError) -> ClientError {
        if !error.is_transient() {
            return error;
        }
        let home = self.profile.home().to_owned();
        ClientError::Interrupted { transfer, path: path.to_owned(), home, source: Box::new(error) }
    }
}
