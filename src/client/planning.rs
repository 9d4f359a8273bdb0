//! Planning: reading a file once, before anything of it is sealed.
//!
//! See [`waxwing_seal::blob::SealPlan`] for why. The digests go to a file of their own, 32 bytes for 64 KiB: a film of
//! 100 GB would otherwise put 50 MB through the profile's store, and through memory.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use waxwing_protocol::Timestamp;
use waxwing_seal::blob::{Changed, SealPlan};

use crate::files::sync_dir;
use crate::profile::make_private_dir;
use crate::progress::Meter;
use crate::transfer::{Planned, plans_dir};
use crate::{ClientError, OnProgress, Profile, Progress};

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// How often a file may change while it is planned or uploaded.
pub(crate) const PLAN_TRIES: u32 = 3;

/// Plans the sealing of the file at `path`; its digests are durable when this returns.
///
/// # Errors
/// [`ClientError::File`], [`ClientError::NotAFile`], [`ClientError::TooLarge`], or [`ClientError::KeepsChanging`] when
/// the file is written to all the while.
pub(crate) async fn plan(profile: &Profile, path: &Path, on: OnProgress<'_>) -> Result<Planned, ClientError> {
    let dir = plans_dir(profile);
    for _ in 0..PLAN_TRIES {
        let metadata = std::fs::metadata(path).map_err(ClientError::file(path))?;
        if !metadata.is_file() {
            return Err(ClientError::NotAFile { path: path.to_owned() });
        }
        let total = metadata.len();
        let plan = SealPlan::generate(total)?;
        let modified = metadata.modified().ok().map(Timestamp::from);
        let digests = HEXLOWER.encode(&random_name());
        let (source, target) = (path.to_owned(), dir.join(&digests));
        let meter = Meter::default();
        let counted = meter.clone();
        let work = tokio::task::spawn_blocking(move || {
            let written = write_digests(&plan, &source, &target, &counted);
            if !matches!(written, Ok(Ok(()))) {
                // Nothing refers to it yet.
                let _ = std::fs::remove_file(&target);
            }
            written.map(|digested| digested.map(|()| plan))
        });
        let joined = meter.report_while(work, |done| on(Progress::Planning { done, total })).await;
        if let Ok(plan) = joined.expect("planning does not panic")? {
            return Ok(Planned { plan, digests, modified });
        }
    }
    Err(ClientError::KeepsChanging { path: path.to_owned() })
}

/// Reads the file and writes its digests; `Ok(Err(Changed))` when it is not as long as planned.
fn write_digests(
    plan: &SealPlan,
    source: &Path,
    target: &Path,
    meter: &Meter,
) -> Result<Result<(), Changed>, ClientError> {
    let dir = target.parent().map(PathBuf::from).unwrap_or_default();
    make_private_dir(&dir).map_err(ClientError::file(&dir))?;
    let mut file = File::open(source).map_err(ClientError::file(source))?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut out = BufWriter::new(options.open(target).map_err(ClientError::file(target))?);

    let mut digester = plan.digester();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = file.read(&mut buffer).map_err(ClientError::file(source))?;
        if read == 0 {
            break;
        }
        let mut written = Ok(());
        let digested = digester.update(&buffer[..read], |digest| {
            if written.is_ok() {
                written = out.write_all(digest.as_bytes());
            }
        });
        written.map_err(ClientError::file(target))?;
        if let Err(changed) = digested {
            return Ok(Err(changed));
        }
        meter.add(read as u64);
    }
    if let Err(changed) = digester.finish() {
        return Ok(Err(changed));
    }
    let synced = out.into_inner().map_err(std::io::IntoInnerError::into_error).and_then(|file| file.sync_all());
    synced.and_then(|()| sync_dir(&dir)).map_err(ClientError::file(target))?;
    Ok(Ok(()))
}

/// 128 random bits: two plans never share a file.
fn random_name() -> [u8; 16] {
    let mut name = [0; 16];
    getrandom::fill(&mut name).expect("the operating system gives randomness");
    name
}

/// Removes a file of digests that no transfer needs any more. One that stays costs a little disk and nothing else.
pub(crate) fn discard(digests: &Path) {
    if let Err(error) = std::fs::remove_file(digests) {
        tracing::debug!(%error, "a file of digests stays behind");
    }
}
