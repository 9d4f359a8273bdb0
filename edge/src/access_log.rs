//! The access log: one line of JSON for each request, for those who count and those who look for what went wrong.
//!
//! It names no grant and no client's secret: method, path without its query, what was answered, what was sent and how
//! long it took. Requests do not wait for it: when the disk is slower than they are, lines are lost and counted.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use waxwing_protocol::Timestamp;

use crate::stats::Counters;

/// Bytes of lines that wait to be written at most.
const WAITING_BYTES_MAX: usize = 2 << 20;

/// How long lines wait for more, so that a busy edge makes one write of thousands.
const GATHER: Duration = Duration::from_millis(20);

/// A request that has ended.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'l> {
    /// When it came.
    pub(crate) at_ms: Timestamp,
    pub(crate) method: &'l str,
    pub(crate) path: &'l str,
    pub(crate) status: u16,
    /// `Content-Range` of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) range: Option<&'l str>,
    /// `Cache-Status` of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cache: Option<&'l str>,
    /// Bytes of the body handed to the connection.
    pub(crate) sent_bytes: u64,
    /// Whether those are all: else the client went, or the answer was cut.
    pub(crate) is_whole: bool,
    /// Until the head of the answer was ready.
    pub(crate) head_us: u64,
    /// Until the last byte was handed to the connection.
    pub(crate) took_us: u64,
}

/// The log, open.
#[derive(Debug)]
pub(crate) struct AccessLog {
    shared: Arc<Shared>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Told when something waits that did not before, and at the end.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    is_over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AccessLog {
    /// Appends to the file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) fn open(path: &Path, counters: Arc<Counters>) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let shared = Arc::new(Shared::default());
        let written = Arc::clone(&shared);
        std::thread::Builder::new().name("edge-access-log".into()).spawn(move || write(file, &written))?;
        Ok(Self { shared, counters })
    }

    /// Hands a line over.
    pub(crate) fn write(&self, line: &Line<'_>) {
        let mut waiting = self.shared.lock();
        if waiting.lines.len() >= WAITING_BYTES_MAX {
            self.counters.access_lines_lost.fetch_add(1, Relaxed);
            return;
        }
        let was_empty = waiting.lines.is_empty();
        let length = waiting.lines.len();
        match serde_json::to_writer(&mut waiting.lines, line) {
            Ok(()) => waiting.lines.push(b'\n'),
            Err(_) => waiting.lines.truncate(length),
        }
        drop(waiting);
        if was_empty {
            self.shared.changed.notify_one();
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_one();
    }
}

fn write(mut file: File, shared: &Shared) {
    let mut lines = Vec::new();
    let mut was_written = true;
    loop {
        let waiting = shared.lock();
        let nothing = |waiting: &mut Waiting| waiting.lines.is_empty() && !waiting.is_over;
        let waiting = shared.changed.wait_while(waiting, nothing).unwrap_or_else(PoisonError::into_inner);
        let is_over = waiting.is_over;
        drop(waiting);
        if !is_over {
            std::thread::sleep(GATHER);
        }
        std::mem::swap(&mut lines, &mut shared.lock().lines);
        let written = file.write_all(&lines);
        lines.clear();
        if let Err(error) = &written
            && was_written
        {
            tracing::warn!("the access log cannot be written: {error}");
        }
        was_written = written.is_ok();
        if is_over {
            return;
        }
    }
}
