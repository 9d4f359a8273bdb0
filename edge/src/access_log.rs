//! The access log: one line of JSON for each request, for those who count and those who look for what went wrong.
//!
//! It names no grant and no client's secret: method, path without its query, what was answered, what was sent and how
//! long it took. Requests do not wait for it: when the disk is slower than they are, lines are lost and counted.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use serde::Serialize;
use waxwing_protocol::Timestamp;

use crate::stats::Counters;

/// Lines that wait to be written at most: 2 MB.
const QUEUE_MAX: usize = 8192;

/// A request that has ended.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    /// When it came.
    pub(crate) at_ms: Timestamp,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) status: u16,
    /// `Content-Range` of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) range: Option<String>,
    /// `Cache-Status` of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cache: Option<String>,
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
    lines: SyncSender<Line>,
    counters: Arc<Counters>,
}

impl AccessLog {
    /// Appends to the file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) fn open(path: &Path, counters: Arc<Counters>) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let (lines, received) = sync_channel(QUEUE_MAX);
        std::thread::Builder::new().name("edge-access-log".into()).spawn(move || write(file, &received))?;
        Ok(Self { lines, counters })
    }

    /// Hands a line over.
    pub(crate) fn write(&self, line: Line) {
        if self.lines.try_send(line).is_err() {
            self.counters.access_lines_lost.fetch_add(1, Relaxed);
        }
    }
}

fn write(file: File, lines: &Receiver<Line>) {
    let mut writer = BufWriter::new(file);
    let mut was_written = true;
    while let Ok(mut line) = lines.recv() {
        // Whatever waits goes out in one write.
        let written = loop {
            let line_written = serde_json::to_writer(&mut writer, &line).map_err(io::Error::from);
            if let Err(error) = line_written.and_then(|()| writer.write_all(b"\n")) {
                break Err(error);
            }
            match lines.try_recv() {
                Ok(next) => line = next,
                Err(_) => break writer.flush(),
            }
        };
        if let Err(error) = &written
            && was_written
        {
            tracing::warn!("the access log cannot be written: {error}");
        }
        was_written = written.is_ok();
    }
}
