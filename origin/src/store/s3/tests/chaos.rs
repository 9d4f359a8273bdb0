//! Everything at once over a faulty network: two origins, many clients, an outside log, and a look at what is left.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

use super::proxy::{ATTEMPT_TIMEOUT, Dice, Fault, Proxy, ROLLED};
use super::server::{bucket, endpoint, settings, wait};
use super::{MIB, OnSeaweed, assert_is, ending, progress, take_in};
use crate::store::s3::bucket::PAGE;
use crate::store::s3::objects::{BLOBS, DATA, Pointer, blob_in, decode, random_name};
use crate::store::suite::{ALICE, BOB, Harness as _, NOW, blob_of};
use crate::store::{BlobStore, Claim, NewBlob, StoreError, StoreErrorKind, UploadState};

/// Uploads of a run; two each have the same content.
const UPLOADS: u8 = 36;

/// Clients at once.
const CLIENTS: usize = 7;

/// How many of a thousand requests meet a fault: so many that hardly an upload meets none.
const FAULTS_PER_MILLE: u64 = 90;

/// How long one client may take for one step before it is stuck.
const STUCK: Duration = Duration::from_secs(240);

/// A store over the proxy, whose parts are of 5 MiB.
pub(super) fn node(proxy: &Proxy, prefix: &str) -> OnSeaweed {
    let mut settings = settings(&proxy.endpoint, prefix);
    settings.attempt_timeout = ATTEMPT_TIMEOUT;
    settings.config.part_bytes = 5 * MIB;
    settings.config.memory_bytes = 4 * 5 * MIB as usize;
    settings.blob_bytes_max = 1 << 30;
    OnSeaweed::open(settings)
}

/// The content of the uploads `2n` and `2n + 1`: small ones, and some of several parts.
fn content(seed: u64, n: u8) -> Bytes {
    let mut dice = Dice::new(seed ^ (u64::from(n / 2) << 32));
    let len = match dice.below(5) {
        0 => dice.below(100),
        1 | 2 => dice.below(400_000),
        _ => 3 * MIB + dice.below(11 * MIB),
    };
    let mut bytes = vec![0; len as usize];
    blake3::Hasher::new().update(&[n / 2]).update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// What a client ended with.
#[derive(Debug)]
struct Ended {
    blob: BlobId,
    owner: OwnerTag,
    /// Whether the owner let it go again.
    is_gone: bool,
}

/// A client: it goes on from what it was told until its upload is a blob, at whichever node it reaches.
struct ClientOf<'a> {
    nodes: [&'a OnSeaweed; 2],
    id: UploadId,
    owner: OwnerTag,
    data: Bytes,
    dice: Dice,
    /// The outside log: the highest offset that was acknowledged.
    told: Option<u64>,
    failures: &'a AtomicUsize,
}

impl ClientOf<'_> {
    fn store(&mut self) -> &dyn BlobStore {
        &self.nodes[self.dice.below(2) as usize].store
    }

    /// One request: some bytes, an offset, perhaps the end.
    async fn go_on(&mut self) -> Result<Option<BlobId>, StoreError> {
        let (id, owner, data) = (self.id, self.owner, self.data.clone());
        let len = data.len() as u64;
        let (from, mut writer) = match self.told {
            // Nobody was told of it, so it may be there or not.
            None => {
                let (mut record, outboard) = progress(&data, 0, 0);
                (record.owner, record.length) = (owner, Some(len));
                let claimed = self.store().claim(id).await?;
                let writer = match claimed {
                    Some(Claim { writer, .. }) => writer,
                    None => {
                        let mut writer = self.store().begin(id).await?;
                        writer.commit(record, outboard).await?;
                        writer
                    }
                };
                self.told = Some(0);
                drop(writer);
                return Ok(None);
            }
            Some(told) => {
                let found = self.store().claim(id).await?;
                let Claim { writer, record } = found.expect("an upload that was acknowledged is there");
                assert!(record.offset >= told, "{told} bytes were acknowledged, and {} are there", record.offset);
                if let UploadState::Complete { blob } = record.state {
                    return Ok(Some(blob));
                }
                (record.offset, writer)
            }
        };
        let end = (from + 1 + self.dice.below(6 * MIB)).min(len);
        if end < len || self.dice.below(4) == 0 {
            take_in(&mut *writer, &data, from, end).await?;
            if end < len {
                let (record, outboard) = progress(&data, from, end);
                let record = crate::store::UploadRecord { owner, length: Some(len), ..record };
                writer.commit(record, outboard).await?;
                self.told = Some(end);
                return Ok(None);
            }
            let (blob, record, outboard) = ending(&data, from, owner);
            writer.complete(blob, Some(record), Vec::new(), outboard).await?;
            return Ok(Some(blob.id));
        }
        let (blob, record, outboard) = ending(&data, from, owner);
        writer.complete(blob, Some(record), vec![data.slice(from as usize..)], outboard).await?;
        Ok(Some(blob.id))
    }

    /// A blob in one request.
    async fn put(&mut self) -> Result<BlobId, StoreError> {
        let (blob, outboard) = blob_of(&self.data, self.owner);
        let data = self.data.clone();
        let mut name = [0; 16];
        name[..8].copy_from_slice(&self.dice.below(u64::MAX).to_le_bytes());
        let mut writer = self.store().begin(UploadId::from_bytes(name)).await?;
        writer.complete(NewBlob { stored_at: NOW, ..blob }, None, vec![data], outboard).await?;
        Ok(blob.id)
    }

    /// What a failure means to a client: nothing that it asked for is denied for good.
    async fn shrug(&self, began: Instant, error: &StoreError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let passing = [StoreErrorKind::Unavailable, StoreErrorKind::Busy, StoreErrorKind::Stale, StoreErrorKind::Other];
        let source = std::error::Error::source(error).map(ToString::to_string);
        assert!(passing.contains(&error.kind()), "{:?}: {error} {source:?}", self.id);
        assert!(began.elapsed() < STUCK, "{:?} is stuck: {error} {source:?}", self.id);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    async fn run(mut self) -> Ended {
        let began = Instant::now();
        let whole = self.data.len() < 100_000 && self.dice.below(2) == 0;
        let blob = loop {
            let done = if whole { self.put().await.map(Some) } else { self.go_on().await };
            match done {
                Ok(Some(blob)) => break blob,
                Ok(None) => {}
                Err(error) => self.shrug(began, &error).await,
            }
        };
        assert_eq!(blob, blob_of(&self.data, self.owner).0.id);
        let is_gone = self.dice.below(3) == 0;
        let mut has_it = is_gone;
        while has_it {
            let owner = self.owner;
            match self.store().disown(blob, owner, NOW).await {
                Ok(_) => has_it = false,
                Err(error) => self.shrug(began, &error).await,
            }
        }
        Ended { blob, owner: self.owner, is_gone }
    }
}

/// What a run with this seed met, having seen that nothing acknowledged was lost and nothing is left over.
async fn survives(endpoint: &str, seed: u64) -> BTreeMap<Fault, u64> {
    let prefix = format!("{}/", random_name().unwrap());
    let proxy = Proxy::start(endpoint, seed, 0);
    let nodes = [node(&proxy, &prefix), node(&proxy, &prefix)];
    proxy.set_rate(FAULTS_PER_MILLE);
    let failures = AtomicUsize::new(0);
    let waiting = Mutex::new((0..UPLOADS).collect::<Vec<_>>());
    let clients = (0..CLIENTS).map(|_| async {
        let mut ended = Vec::new();
        loop {
            let next = waiting.lock().unwrap().pop();
            let Some(n) = next else { return ended };
            let client = ClientOf {
                nodes: [&nodes[0], &nodes[1]],
                id: UploadId::from_bytes([n; 16]),
                owner: if n % 2 == 0 { ALICE } else { BOB },
                data: content(seed, n),
                dice: Dice::new(seed + 1 + u64::from(n)),
                told: None,
                failures: &failures,
            };
            ended.push((n, client.run().await));
        }
    });
    let ended: Vec<_> = futures_util::future::join_all(clients).await.into_iter().flatten().collect();
    proxy.set_rate(0);
    // What is still under way from before arrives.
    tokio::time::sleep(2 * ATTEMPT_TIMEOUT).await;
    check(&nodes, &ended, seed).await;
    eprintln!("seed {seed}: {} failures, {:?}", failures.load(Ordering::Relaxed), proxy.counts());
    proxy.counts()
}

async fn check(nodes: &[OnSeaweed; 2], ended: &[(u8, Ended)], seed: u64) {
    let store = &nodes[1].store;
    let mut owners: BTreeMap<BlobId, Vec<OwnerTag>> = BTreeMap::new();
    let mut held: BTreeMap<OwnerTag, u64> = BTreeMap::from([(ALICE, 0), (BOB, 0)]);
    for (n, ended) in ended {
        let having = owners.entry(ended.blob).or_default();
        if !ended.is_gone {
            having.push(ended.owner);
            *held.entry(ended.owner).or_default() += content(seed, *n).len() as u64;
        }
    }
    for (n, Ended { blob, .. }) in ended {
        let expected = owners.get_mut(blob).unwrap();
        expected.sort_unstable();
        if expected.is_empty() {
            assert!(store.blob(*blob).await.unwrap().is_none(), "{blob} went with its last owner");
        } else {
            assert_eq!(nodes[0].owners(*blob), *expected);
            assert_is(store, *blob, &content(seed, *n)).await;
        }
    }
    for n in 0..UPLOADS {
        store.remove(UploadId::from_bytes([n; 16])).await.unwrap();
    }
    for (owner, bytes) in &held {
        assert!(store.used(*owner).await.unwrap() >= *bytes, "an owner has more than they are charged with");
    }
    store.recount().await.unwrap();
    for (owner, bytes) in held {
        assert_eq!(store.used(owner).await.unwrap(), bytes, "a count sets every owner right");
    }
    store.collect(Timestamp::MAX).await.unwrap();
    assert_eq!(store.garbage(Timestamp::MAX).await.unwrap().keys, [""; 0], "one collection is enough");
    nothing_is_left_over(nodes, owners.values().filter(|having| !having.is_empty()).count());
}

/// The server's own listing: a pointer for each of so many blobs, its bytes, and nothing else.
fn nothing_is_left_over(nodes: &[OnSeaweed; 2], blobs: usize) {
    let bucket = bucket(&nodes[0].settings);
    let mut named = Vec::new();
    for listed in wait(bucket.list(BLOBS, None, PAGE)).unwrap() {
        let found = wait(bucket.get(&listed.key)).unwrap().unwrap();
        let pointer: Pointer = decode(&listed.key, &found.bytes).unwrap();
        assert!(blob_in(&listed.key).is_some() && pointer.place.is_some(), "{} leads nowhere", listed.key);
        named.extend(pointer.place.and_then(|place| place.data));
    }
    let data = wait(bucket.list(DATA, None, PAGE)).unwrap();
    let mut data: Vec<_> = data.iter().map(|listed| listed.key.strip_prefix(DATA).unwrap().to_owned()).collect();
    named.sort();
    data.sort();
    assert_eq!(data, named, "bytes that nothing names, or names without bytes");
    assert!(blobs.abs_diff(named.len()) <= 1, "{blobs} blobs, one of which may be empty");
    let others: Vec<_> = nodes[0]
        .keys()
        .into_iter()
        .filter(|key| !["blobs", "data", "named", "outboards"].contains(&key.as_str()))
        .collect();
    assert_eq!(others, [""; 0]);
}

/// Every kind of fault, met while two origins take uploads of the same clients.
#[tokio::test]
async fn nothing_acknowledged_is_lost_over_a_faulty_network() {
    let Some(endpoint) = endpoint() else { return };
    let seeds = match std::env::var("WAXWING_CHAOS_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => vec![1, 2],
    };
    let mut met: BTreeMap<Fault, u64> = BTreeMap::new();
    for seed in seeds {
        for (fault, times) in survives(endpoint, seed).await {
            *met.entry(fault).or_default() += times;
        }
    }
    for fault in ROLLED {
        assert!(met.get(&fault).is_some_and(|times| *times > 0), "no request met {fault:?}: that shows nothing of it");
    }
}
