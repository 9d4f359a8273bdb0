//! Credentials in files, taken up anew when the files change.
//!
//! Keys are rotated when somebody leaves or a laptop is lost, and a server that has to be restarted for it is not. A file
//! that cannot be used leaves the credentials before it in place, and is complained of once.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tracing::{error, info};

/// Bytes of a file of credentials at most; a service account has some 2,400.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Why credentials cannot be had. What is in the file is never shown.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct CredentialsError {
    path: PathBuf,
    reason: String,
}

impl CredentialsError {
    pub(super) fn new(path: &Path, reason: &dyn ToString) -> Self {
        Self { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Reads what is in a file.
type Parse<T> = Box<dyn Fn(&[u8]) -> Result<T, String> + Send + Sync>;

/// Credentials from a file.
pub(super) struct FromFile<T> {
    path: PathBuf,
    parse: Parse<T>,
    current: Mutex<Current<T>>,
}

struct Current<T> {
    value: Arc<T>,
    /// Counts what was in the file so far.
    version: u64,
    /// What the file was like when it was read.
    look: Option<Look>,
}

/// What a file is like. A rename puts another file in its place, a write makes it younger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl<T> FromFile<T> {
    /// Reads `path`.
    pub(super) fn open(
        path: &Path,
        parse: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, CredentialsError> {
        let failed = |reason| CredentialsError { path: path.to_owned(), reason };
        let look = look(path);
        let bytes = read(path).map_err(|error| failed(error.to_string()))?;
        let value = Arc::new(parse(&bytes).map_err(failed)?);
        let current = Mutex::new(Current { value, version: 1, look });
        Ok(Self { path: path.to_owned(), parse: Box::new(parse), current })
    }

    /// The credentials as the file has them now, and which they are, counted. Looking costs one call of the system, so
    /// it is done each time.
    pub(super) fn get(&self) -> (Arc<T>, u64) {
        let look = look(&self.path);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if look.is_some() && look != current.look {
            current.look = look;
            match read(&self.path).map_err(|error| error.to_string()).and_then(|bytes| (self.parse)(&bytes)) {
                Ok(value) => {
                    current.value = Arc::new(value);
                    current.version += 1;
                    info!(path = %self.path.display(), "push credentials were taken up anew");
                }
                Err(reason) => error!(path = %self.path.display(), reason, "push credentials stay as they were"),
            }
        }
        (current.value.clone(), current.version)
    }
}

fn look(path: &Path) -> Option<Look> {
    let found = fs::metadata(path).ok()?;
    Some(Look { modified: found.modified().ok(), bytes: found.len(), inode: found.ino() })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("too large for credentials"));
    }
    fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_is_read_again_and_one_that_makes_no_sense_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let put = |text: &str| {
            // As tools do it: another file, then a rename.
            let new = dir.path().join(text);
            fs::write(&new, text).unwrap();
            fs::rename(new, &path).unwrap();
        };
        let parse = |bytes: &[u8]| String::from_utf8_lossy(bytes).parse::<u32>().map_err(|error| error.to_string());
        put("1");
        let file = FromFile::open(&path, parse).unwrap();
        assert_eq!(file.get(), (Arc::new(1), 1));
        put("22");
        assert_eq!(file.get(), (Arc::new(22), 2));
        put("nonsense");
        assert_eq!(file.get(), (Arc::new(22), 2));
        fs::remove_file(&path).unwrap();
        assert_eq!(file.get(), (Arc::new(22), 2));
        put("3");
        assert_eq!(file.get(), (Arc::new(3), 3));
    }

    #[test]
    fn credentials_that_are_not_there_are_an_error_that_names_the_file() {
        let error = FromFile::open(Path::new("/nonexistent/key.p8"), |_| Ok(())).map(drop).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/key.p8"), "{error}");
    }
}
