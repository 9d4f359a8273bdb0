//! A profile: everything one device knows, in one directory, changed in transactions.
//!
//! A client that kept its ratchets in one file and its outbox in another would, killed between two writes, encrypt
//! twice under one key. So there is one store (`profile.redb`) for all of it, and one transaction can change the tables
//! of several modules.
//!
//! Promises: a transaction is durable when [`Profile::write`] returns, and takes effect whole or not at all. One
//! process at a time holds a profile. The directory is its owner's alone (mode 0700).
//!
//! Calls block for a read, or for one fsync of a few KiB. A client commits a handful of times a message, so async code
//! calls them directly; a thread hop would cost as much as the wait, and open a gap in which the task can be dropped
//! between commit and the step it allows.

use std::marker::PhantomData;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError,
    WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::ClientError;

/// The name of the store's file in a profile's directory.
const STORE_FILE: &str = "profile.redb";

/// Memory for the store's cache. A profile is small; redb's default of 1 GiB is meant for servers.
const CACHE_BYTES: usize = 4 << 20;

/// A table: rows of `V`, as JSON, by key bytes. A module declares its own as constants.
pub(crate) struct Table<V> {
    name: &'static str,
    row: PhantomData<fn() -> V>,
}

impl<V> Table<V> {
    /// The table called `name`; every name is declared once.
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, row: PhantomData }
    }

    const fn definition(&self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(self.name)
    }
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store itself.
    #[error(transparent)]
    Engine(#[from] Box<redb::Error>),
    /// A row that this version cannot read.
    #[error("a row of the table {table} is damaged or of a newer version")]
    Row {
        /// The table.
        table: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Wraps each of redb's many error types.
fn engine(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Engine(Box::new(error.into()))
}

/// One device's directory, held by this process alone. Clones share it.
#[derive(Clone)]
pub struct Profile(Arc<Inner>);

struct Inner {
    home: PathBuf,
    store: Database,
}

impl Profile {
    /// Opens the profile in `home`, making directory and store when there are none.
    ///
    /// # Errors
    /// [`ClientError::ProfileInUse`] when another process holds it; [`ClientError::File`] when the directory cannot be
    /// made.
    pub fn create(home: &Path) -> Result<Self, ClientError> {
        make_private_dir(home).map_err(ClientError::file(home))?;
        // Made here, for its owner only, since the directory may have been there for all to read.
        let path = home.join(STORE_FILE);
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(&path).map_err(ClientError::file(&path))?;
        Self::open_store(home, |builder, path| builder.create(path))
    }

    /// Opens the profile in `home`.
    ///
    /// # Errors
    /// [`ClientError::NoProfile`] when there is none; [`ClientError::ProfileInUse`] when another process holds it.
    pub fn open(home: &Path) -> Result<Self, ClientError> {
        if !home.join(STORE_FILE).is_file() {
            return Err(ClientError::NoProfile { home: home.to_owned() });
        }
        Self::open_store(home, |builder, path| builder.open(path))
    }

    fn open_store(
        home: &Path,
        open: impl FnOnce(&mut redb::Builder, &Path) -> Result<Database, DatabaseError>,
    ) -> Result<Self, ClientError> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let store = open(&mut builder, &home.join(STORE_FILE)).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => ClientError::ProfileInUse { home: home.to_owned() },
            error => ClientError::Profile { home: home.to_owned(), source: engine(error) },
        })?;
        Ok(Self(Arc::new(Inner { home: home.to_owned(), store })))
    }

    /// The profile's directory.
    pub fn home(&self) -> &Path {
        &self.0.home
    }

    /// Looks at one consistent state of the profile.
    ///
    /// # Errors
    /// Those of `f`, and [`ClientError::Profile`] when the store fails.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&ReadTx<'_>) -> Result<T, ClientError>) -> Result<T, ClientError> {
        let tx = self.0.store.begin_read().map_err(|error| self.failed(engine(error)))?;
        f(&ReadTx { tx, profile: self })
    }

    /// Changes the profile: durably when `f` succeeds, not at all when it fails.
    ///
    /// # Errors
    /// Those of `f`, and [`ClientError::Profile`] when the store fails.
    pub(crate) fn write<T>(&self, f: impl FnOnce(&WriteTx<'_>) -> Result<T, ClientError>) -> Result<T, ClientError> {
        let tx = self.0.store.begin_write().map_err(|error| self.failed(engine(error)))?;
        let tx = WriteTx { tx, profile: self };
        let out = f(&tx)?;
        tx.tx.commit().map_err(|error| self.failed(engine(error)))?;
        Ok(out)
    }

    fn failed(&self, source: StoreError) -> ClientError {
        ClientError::Profile { home: self.0.home.clone(), source }
    }
}

/// A view of the profile at one moment.
pub(crate) struct ReadTx<'a> {
    tx: ReadTransaction,
    profile: &'a Profile,
}

/// A change of the profile under way.
pub(crate) struct WriteTx<'a> {
    tx: WriteTransaction,
    profile: &'a Profile,
}

/// Looking at rows, the same within a view and a change.
pub(crate) trait Rows {
    /// The row under `key`.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the store fails.
    fn get<V: DeserializeOwned>(&self, table: &Table<V>, key: &[u8]) -> Result<Option<V>, ClientError>;

    /// The rows whose keys lie within these bounds, by rising key.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the store fails.
    fn range<V: DeserializeOwned>(
        &self,
        table: &Table<V>,
        keys: (Bound<&[u8]>, Bound<&[u8]>),
    ) -> Result<Vec<(Vec<u8>, V)>, ClientError>;

    /// All rows, by rising key. For tables that stay small.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the store fails.
    fn list<V: DeserializeOwned>(&self, table: &Table<V>) -> Result<Vec<(Vec<u8>, V)>, ClientError> {
        self.range(table, (Bound::Unbounded, Bound::Unbounded))
    }
}

fn decode<V: DeserializeOwned>(table: &'static str, bytes: &[u8]) -> Result<V, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Row { table, source })
}

/// `get` and `range` are the same text for redb's two kinds of tables, which share no object-safe trait.
macro_rules! rows {
    ($tx:ident) => {
        impl Rows for $tx<'_> {
            fn get<V: DeserializeOwned>(&self, table: &Table<V>, key: &[u8]) -> Result<Option<V>, ClientError> {
                let get = || {
                    let rows = match self.tx.open_table(table.definition()) {
                        Ok(rows) => rows,
                        // A table comes to be with its first row; reading one before that is no error.
                        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
                        Err(error) => return Err(engine(error)),
                    };
                    let row = rows.get(key).map_err(engine)?;
                    row.map(|row| decode(table.name, row.value())).transpose()
                };
                get().map_err(|error| self.profile.failed(error))
            }

            fn range<V: DeserializeOwned>(
                &self,
                table: &Table<V>,
                keys: (Bound<&[u8]>, Bound<&[u8]>),
            ) -> Result<Vec<(Vec<u8>, V)>, ClientError> {
                let list = || {
                    let rows = match self.tx.open_table(table.definition()) {
                        Ok(rows) => rows,
                        // A table comes to be with its first row; reading one before that is no error.
                        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                        Err(error) => return Err(engine(error)),
                    };
                    let rows = rows.range::<&[u8]>(keys).map_err(engine)?.map(|row| {
                        let (key, value) = row.map_err(engine)?;
                        Ok((key.value().to_vec(), decode(table.name, value.value())?))
                    });
                    rows.collect()
                };
                list().map_err(|error| self.profile.failed(error))
            }
        }
    };
}

rows!(ReadTx);
rows!(WriteTx);

impl WriteTx<'_> {
    /// Puts a row, in place of the one there may be.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the store fails.
    pub(crate) fn put<V: Serialize>(&self, table: &Table<V>, key: &[u8], row: &V) -> Result<(), ClientError> {
        let put = || {
            let bytes = serde_json::to_vec(row).map_err(|source| StoreError::Row { table: table.name, source })?;
            // Rows hold keys; the copy in memory goes with this call.
            let bytes = Zeroizing::new(bytes);
            let mut rows = self.tx.open_table(table.definition()).map_err(engine)?;
            rows.insert(key, bytes.as_slice()).map_err(engine)?;
            Ok(())
        };
        put().map_err(|error| self.profile.failed(error))
    }

    /// Removes a row; tells whether there was one.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the store fails.
    pub(crate) fn remove<V>(&self, table: &Table<V>, key: &[u8]) -> Result<bool, ClientError> {
        let remove = || {
            let mut rows = self.tx.open_table(table.definition()).map_err(engine)?;
            let removed = rows.remove(key).map_err(engine)?;
            Ok(removed.is_some())
        };
        remove().map_err(|error| self.profile.failed(error))
    }
}

/// Makes `dir` with its parents; `dir` itself is for its owner only.
pub(crate) fn make_private_dir(dir: &Path) -> std::io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Table<String> = Table::new("test_names");
    const AGES: Table<u32> = Table::new("test_ages");

    #[test]
    fn tables_of_several_modules_change_together_or_not_at_all() {
        let home = tempfile::tempdir().unwrap();
        let profile = Profile::create(home.path()).unwrap();
        let failed: Result<(), _> = profile.write(|tx| {
            tx.put(&NAMES, b"a", &"alice".to_owned())?;
            Err(ClientError::NoProfile { home: PathBuf::new() })
        });
        assert!(failed.is_err());
        assert_eq!(profile.read(|tx| tx.get(&NAMES, b"a")).unwrap(), None);

        profile
            .write(|tx| {
                tx.put(&NAMES, b"a", &"alice".to_owned())?;
                tx.put(&AGES, b"a", &42)
            })
            .unwrap();
        drop(profile);
        let profile = Profile::open(home.path()).unwrap();
        assert_eq!(profile.read(|tx| tx.list(&AGES)).unwrap(), [(b"a".to_vec(), 42)]);
        assert_eq!(profile.read(|tx| tx.get(&NAMES, b"a")).unwrap().as_deref(), Some("alice"));
        assert!(profile.write(|tx| tx.remove(&NAMES, b"a")).unwrap());
        assert!(!profile.write(|tx| tx.remove(&NAMES, b"a")).unwrap());
    }

    #[test]
    fn a_profile_is_held_once_and_belongs_to_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("new/alice");
        assert!(matches!(Profile::open(&home), Err(ClientError::NoProfile { .. })));
        let held = Profile::create(&home).unwrap();
        assert!(matches!(Profile::open(&home), Err(ClientError::ProfileInUse { .. })));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(std::fs::metadata(&home).unwrap().permissions().mode() & 0o777, 0o700);
        }
        drop(held);
        assert!(Profile::open(&home).is_ok());
    }

    #[test]
    fn a_row_of_another_shape_is_an_error_and_not_a_guess() {
        let home = tempfile::tempdir().unwrap();
        let profile = Profile::create(home.path()).unwrap();
        profile.write(|tx| tx.put(&NAMES, b"a", &"alice".to_owned())).unwrap();
        let misread: Table<u32> = Table::new("test_names");
        let error = profile.read(|tx| tx.get(&misread, b"a")).unwrap_err();
        assert!(matches!(error, ClientError::Profile { source: StoreError::Row { .. }, .. }), "{error}");
    }
}
