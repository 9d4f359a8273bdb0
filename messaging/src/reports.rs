//! Abuse reports: what somebody wants the operator of this service to look at.
//!
//! The service reads no messages, so an operator learns of abuse from those who suffer it. Whoever reports says whom, why,
//! and may give the text of messages away; that is their decision, and nothing here asks their device for it.
//!
//! Reports are lines of JSON in a file of the data directory, synced before the answer: an operator reads and removes them
//! with the tools of every day, and they are in no backup of the mailboxes. The file is bounded; when it is full, reporting
//! is refused until somebody has taken it away.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use waxwing_protocol::api::{REPORT_BYTES_MAX, ReportRequest};
use waxwing_protocol::{AccountId, Timestamp};

use crate::limits::{Limit, LimitView};
use crate::store::DeviceAddress;

/// File of the reports, in the data directory.
const REPORTS_FILE: &str = "reports.jsonl";

/// Bytes of the file at most: 4,000 reports of the largest size.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Reports that an account can make a day.
const REPORTS_PER_DAY: u32 = 20;

/// Takes reports.
pub(crate) struct Reports {
    file: Arc<Mutex<PathBuf>>,
    by_account: Limit<AccountId>,
}

/// Why a report was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    #[error("a report says why, in {REPORT_BYTES_MAX} bytes with everything in it at most")]
    Malformed,
    #[error("too many reports")]
    TooMany { retry_after: Duration },
    #[error("the service takes no more reports for now")]
    Full,
    #[error("the report could not be kept: {0}")]
    Io(#[from] std::io::Error),
}

/// A report as it is kept.
#[derive(Serialize)]
struct Line<'a> {
    at_ms: u64,
    by: AccountId,
    by_device: u32,
    #[serde(flatten)]
    report: &'a ReportRequest,
}

impl Reports {
    pub(crate) fn new(data_dir: &Path) -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        let file = Arc::new(Mutex::new(data_dir.join(REPORTS_FILE)));
        Self { file, by_account: Limit::new("reports-of-account", REPORTS_PER_DAY, day) }
    }

    /// Keeps a report; it is durable when this returns.
    pub(crate) async fn take(
        &self,
        by: DeviceAddress,
        report: &ReportRequest,
        now: Timestamp,
        wall: Timestamp,
    ) -> Result<(), ReportError> {
        let messages: usize = report.messages.iter().map(|message| message.text.len() + 64).sum();
        if report.reason.trim().is_empty() || report.reason.len() + messages > REPORT_BYTES_MAX {
            return Err(ReportError::Malformed);
        }
        self.by_account.spend(by.account, now).map_err(|retry_after| ReportError::TooMany { retry_after })?;
        let line = Line { at_ms: wall.as_millis(), by: by.account, by_device: by.device.get(), report };
        let mut line = serde_json::to_vec(&line).map_err(std::io::Error::other)?;
        line.push(b'\n');
        let file = Arc::clone(&self.file);
        tokio::task::spawn_blocking(move || append(&file, &line)).await.map_err(std::io::Error::other)?
    }

    pub(crate) fn limit(&self) -> LimitView {
        self.by_account.view()
    }
}

/// Opened for each line: whoever takes the file away gets every line that was acknowledged.
fn append(file: &Mutex<PathBuf>, line: &[u8]) -> Result<(), ReportError> {
    let path = file.lock().unwrap_or_else(PoisonError::into_inner);
    let mut file = OpenOptions::new().create(true).append(true).open(&*path)?;
    if file.metadata()?.len() + line.len() as u64 > FILE_BYTES_MAX {
        return Err(ReportError::Full);
    }
    file.write_all(line)?;
    file.sync_all()?;
    Ok(())
}
