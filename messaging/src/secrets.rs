//! The node's secrets, a file each: made once, kept for ever.
//!
//! A signing key that changes at a restart would make every grant out there invalid; an owner key that changes would
//! part every account from its blobs. So a secret is written to the end and synced under another name before it gets
//! its own, and a file that is not a whole secret is an error, never replaced.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Bytes of a secret.
const SECRET_BYTES: usize = 32;

/// Why a secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read or made.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is there and is not a secret of ours.
    #[error("{path} does not hold 32 bytes; restore it from a backup, or remove it to make a new secret")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the secret in `path`, or makes one there, readable by its owner alone.
pub(crate) fn load_or_create(path: &Path) -> Result<[u8; SECRET_BYTES], SecretError> {
    let io = |source| SecretError::Io { path: path.to_owned(), source };
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
        Ok(Some(secret)) => return Ok(secret),
        Ok(None) => return Err(SecretError::Malformed { path: path.to_owned() }),
    }
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret).map_err(|error| io(io::Error::other(error.to_string())))?;
    create(path, &secret).map_err(io)?;
    Ok(secret)
}

fn read(path: &Path) -> io::Result<Option<[u8; SECRET_BYTES]>> {
    let mut bytes = Vec::with_capacity(SECRET_BYTES + 1);
    // One byte more than a secret tells a longer file without reading it.
    File::open(path)?.take(SECRET_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes.try_into().ok())
}

fn create(path: &Path, secret: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(secret)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    // The name is durable only when its directory is.
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_secret_is_made_once_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grant.key");
        let secret = load_or_create(&path).unwrap();
        assert_eq!(load_or_create(&path).unwrap(), secret);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_ne!(load_or_create(&dir.path().join("owner.key")).unwrap(), secret);
    }

    #[test]
    fn a_cut_secret_is_an_error_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grant.key");
        for bytes in [&[7; 31][..], &[7; 33], b""] {
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(load_or_create(&path), Err(SecretError::Malformed { .. })));
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error_that_names_the_file() {
        let error = load_or_create(Path::new("/nonexistent/grant.key")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/grant.key"));
    }
}
