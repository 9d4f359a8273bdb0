//! The whole edge against a model: whatever is asked, purged, restarted, damaged and lied about, in any order.
//!
//! Tests of one fault at a time say nothing of a truncated cache file after a purge amid a fill from an origin that
//! breaks off. Here random histories of all of it are held against two sentences: every byte that is served is the
//! blob's, and what cannot be served whole ends visibly. And against three more: what was purged is not served again, the
//! tier never takes more than it may, and when the origin is honest again everything can be had.
//!
//! A history that breaks one of them is shrunk to a short one. `WAXWING_HISTORIES` and `WAXWING_SEED` ask for more and
//! for others.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use bytes::Bytes;
use http::StatusCode;
use http::header::RANGE;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use waxwing_edge::Config;
use waxwing_protocol::BlobId;
use waxwing_protocol::range::{parse_content_range, parse_ranges};

use super::harness::{Answer, GROUP, SLICE, TestEdge, sample_bytes};
use super::origin::Manner;

/// The smallest tier there is.
const DISK: u64 = 64 << 20;

/// Histories tried by default: what a slow machine does in half a minute.
const HISTORIES: u32 = 8;

/// Blobs of every shape, together more than the tier holds.
static BLOBS: LazyLock<Vec<Bytes>> = LazyLock::new(|| {
    let lens = [
        0,
        1,
        541,
        GROUP,
        GROUP + 1,
        SLICE,
        2 * SLICE + 9,
        9 * SLICE + GROUP + 7,
        20 * SLICE,
        24 * SLICE + 33,
        22 * SLICE - 1,
    ];
    let blobs = lens.into_iter().enumerate().map(|(n, len)| {
        let mut bytes = sample_bytes(len);
        bytes.iter_mut().step_by(GROUP / 2).for_each(|byte| *byte ^= n as u8);
        bytes.into()
    });
    blobs.collect()
});

/// The large ones.
const LARGE: Range<usize> = 7..11;

/// What happens, one after the other.
#[derive(Clone, Debug)]
enum Step {
    /// Requests at once.
    Read(Vec<Request>),
    /// All the large blobs at once: more than fits.
    Flood,
    /// A client that goes away after the first bytes.
    HangUp(usize),
    /// A blob goes from the origin, amid requests.
    Purge(usize, Vec<Request>),
    /// A purged blob is uploaded again.
    Store(usize),
    /// How the origin is from now on, with a place in a blob for those manners that have one.
    Behave(usize, Point),
    /// The edge stops, its disk is damaged, and it starts again.
    Restart(Vec<Damage>),
}

#[derive(Clone, Debug)]
struct Request {
    blob: usize,
    shape: Shape,
}

#[derive(Clone, Debug)]
enum Shape {
    Whole,
    Head,
    /// Ranges: where each begins and how long it is.
    Ranges(Vec<(Point, u32)>),
    Suffix(u32),
}

/// A place, near the borders where mistakes live.
#[derive(Clone, Copy, Debug)]
struct Point {
    unit: usize,
    count: usize,
    before: usize,
}

#[derive(Clone, Copy, Debug)]
struct Damage {
    kind: usize,
    file: usize,
    at: Point,
}

const DAMAGES: [&str; 9] = [
    "bit flipped in a cache file",
    "cache file cut",
    "cache file gone",
    "blocks swapped in a cache file",
    "stray cache file",
    "index log cut",
    "bit flipped in the index log",
    "index log gone",
    "junk behind the index log",
];

fn manner(kind: usize, at: u64) -> Manner {
    match kind {
        0 => Manner::Status(503),
        1 => Manner::Mute,
        2 => Manner::CutAt(at),
        3 => Manner::ChunkedShortAt(at),
        4 => Manner::SilentAt(at),
        5 => Manner::Trickle,
        6 => Manner::FlipAt(at),
        7 => Manner::IgnoreRange,
        8 => Manner::ShiftRange,
        9 => Manner::OtherSize,
        10 => Manner::Padded,
        11 => Manner::ForeignOutboard,
        12 => Manner::NoOutboardSize,
        _ => Manner::Honest,
    }
}

/// What can be wrong with the origin; above it, it is honest.
const MISDEEDS: usize = 13;

impl Point {
    /// As an offset below `len`, or at it.
    fn within(self, len: usize) -> usize {
        (self.unit * self.count).saturating_sub(self.before) % (len + 1)
    }
}

fn points() -> impl Strategy<Value = Point> {
    let units = prop_oneof![Just(4_099_usize), Just(GROUP), Just(SLICE)];
    (units, 0..400_usize, 0..3_usize).prop_map(|(unit, count, before)| Point { unit, count, before })
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let lens = prop_oneof![Just(0_u32), 0..200_u32, 0..3 * SLICE as u32];
    let shapes = prop_oneof![
        3 => Just(Shape::Whole),
        1 => Just(Shape::Head),
        4 => prop::collection::vec((points(), lens), 1..8).prop_map(Shape::Ranges),
        1 => (0..2 * SLICE as u32).prop_map(Shape::Suffix),
    ];
    let request = (0..BLOBS.len(), shapes).prop_map(|(blob, shape)| Request { blob, shape });
    prop::collection::vec(request, 1..6)
}

fn steps() -> impl Strategy<Value = Step> {
    let damage = (0..DAMAGES.len(), 0..16_usize, points()).prop_map(|(kind, file, at)| Damage { kind, file, at });
    prop_oneof![
        6 => requests().prop_map(Step::Read),
        1 => Just(Step::Flood),
        1 => LARGE.prop_map(Step::HangUp),
        2 => (0..BLOBS.len(), requests()).prop_map(|(blob, amid)| Step::Purge(blob, amid)),
        2 => (0..BLOBS.len()).prop_map(Step::Store),
        3 => (0..MISDEEDS + 4, points()).prop_map(|(kind, at)| Step::Behave(kind, at)),
        3 => prop::collection::vec(damage, 0..6).prop_map(Step::Restart),
    ]
}

/// A history in which everything happens once that can: the random ones may leave something out.
fn round_of_everything() -> Vec<Step> {
    const COLD: usize = 7;
    let at = Point { unit: GROUP, count: 40, before: 1 };
    let whole = |blob| Step::Read(vec![Request { blob, shape: Shape::Whole }]);
    let misdeeds = (0..MISDEEDS).flat_map(|kind| {
        let cold = [Step::Purge(COLD, Vec::new()), Step::Store(COLD), Step::Behave(kind, at), whole(COLD)];
        cold.into_iter().chain([Step::Behave(MISDEEDS, at)])
    });
    let damages = (0..DAMAGES.len()).flat_map(|kind| {
        let few = (0..2).map(|file| Damage { kind, file, at });
        [Step::Flood, whole(COLD), Step::Restart(few.collect()), whole(COLD), Step::HangUp(8)]
    });
    misdeeds.chain(damages).collect()
}

/// A small memory, so that the disk is what serves; short waits for an origin that says nothing.
fn config() -> Config {
    Config {
        memory_bytes: 4 << 20,
        disk_bytes: DISK,
        absent_ms: 0,
        purge_poll_ms: 5,
        scrub_bytes_per_s: 256 << 20,
        upstream_answer_timeout_ms: 150,
        upstream_idle_timeout_ms: 150,
        ..Config::default()
    }
}

/// What happened, over all histories: a test whose injectors did nothing shows nothing.
type Happened = BTreeMap<String, u64>;

struct World {
    edge: TestEdge,
    blobs: Vec<Blob>,
    manner: Manner,
    happened: Happened,
}

struct Blob {
    id: BlobId,
    bytes: Bytes,
    /// Whether the origin has it.
    is_there: bool,
    /// Whether the origin may have told a size that nothing speaks against before the last group comes.
    is_size_doubtful: bool,
}

#[test]
fn every_byte_is_the_blobs_whatever_happens() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u32>().expect("a number"));
    let histories = number("WAXWING_HISTORIES").unwrap_or(HISTORIES);
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&number("WAXWING_SEED").unwrap_or(1).to_le_bytes());
    let cases = Cases { cases: histories, failure_persistence: None, max_shrink_iters: 200, ..Cases::default() };
    let mut runner = TestRunner::new_with_rng(cases, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let happened = Mutex::new(Happened::new());
    let live = |history| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = runtime.block_on(run(history));
        let mut happened = happened.lock().unwrap();
        seen.into_iter().for_each(|(what, times)| *happened.entry(what).or_default() += times);
    };
    live(round_of_everything());
    let outcome = runner.run(&prop::collection::vec(steps(), 16..40), |history| {
        live(history);
        Ok::<(), TestCaseError>(())
    });
    let happened = happened.into_inner().unwrap();
    println!("{happened:#?}");
    outcome.unwrap();
    let mut due: Vec<String> = DAMAGES.map(str::to_owned).to_vec();
    due.extend((0..MISDEEDS).map(|kind| format!("{:?}", manner(kind, 0)).split('(').next().unwrap().to_owned()));
    let others = ["whole", "cut", "refused", "of disk", "evicted", "corrupt", "purged", "hung up", "restarted"];
    due.extend(others.map(str::to_owned));
    let missing: Vec<_> = due.iter().filter(|what| happened.get(*what).copied().unwrap_or(0) == 0).collect();
    assert!(missing.is_empty(), "never happened: {missing:?}");
}

/// Lives through a history, and looks after each step whether everything still holds.
async fn run(history: Vec<Step>) -> Happened {
    let edge = TestEdge::start_with(config()).await;
    let blobs = BLOBS.iter().map(|bytes| Blob {
        id: edge.origin.store(bytes.clone()),
        bytes: bytes.clone(),
        is_there: true,
        is_size_doubtful: false,
    });
    let blobs = blobs.collect();
    let mut world = World { edge, blobs, manner: Manner::Honest, happened: Happened::new() };
    for step in history {
        world = world.after(step).await;
        world.assert_within_its_bounds();
    }
    world.in_the_end().await
}

impl World {
    async fn after(mut self, step: Step) -> Self {
        match step {
            Step::Read(requests) => self.read(&requests, None).await,
            Step::Flood => {
                let all: Vec<_> = LARGE.map(|blob| Request { blob, shape: Shape::Whole }).collect();
                self.read(&all, None).await;
            }
            Step::HangUp(blob) => self.hang_up(blob).await,
            Step::Purge(blob, amid) => {
                self.read(&amid, Some(blob)).await;
                self.read(&[Request { blob, shape: Shape::Whole }], None).await;
            }
            Step::Store(blob) => {
                self.edge.origin.store(self.blobs[blob].bytes.clone());
                self.blobs[blob].is_there = true;
            }
            Step::Behave(kind, at) => {
                self.manner = manner(kind, at.within(24 * SLICE) as u64);
                self.edge.origin.behave(self.manner);
            }
            Step::Restart(damages) => return self.restarted(config(), &damages).await,
        }
        self
    }

    /// Sends `requests` at once, and has the origin purge a blob amid them.
    async fn read(&mut self, requests: &[Request], purged: Option<usize>) {
        if self.manner == Manner::Padded {
            requests.iter().for_each(|request| self.blobs[request.blob].is_size_doubtful = true);
        }
        let answers = requests.iter().map(|request| async {
            let Request { blob, shape } = request;
            let Blob { id, bytes, .. } = &self.blobs[*blob];
            match shape {
                Shape::Whole => self.edge.get(*id, &[]).await,
                Shape::Head => self.edge.head(*id, &[]).await,
                Shape::Ranges(_) | Shape::Suffix(_) => {
                    self.edge.get(*id, &[(RANGE, &range_header(shape, bytes.len()))]).await
                }
            }
        });
        let purge = async {
            let Some(purged) = purged else { return };
            // So that some of them are under way.
            tokio::task::yield_now().await;
            self.edge.origin.purge(self.blobs[purged].id);
            self.wait_for_purges().await;
        };
        let (answers, ()) = tokio::join!(futures_util::future::join_all(answers), purge);
        if let Some(purged) = purged {
            self.blobs[purged].is_there = false;
            self.note("purged", 1);
        }
        for (request, answer) in requests.iter().zip(answers) {
            let may_be_there = self.blobs[request.blob].is_there || purged == Some(request.blob);
            let may_be_absent = !self.blobs[request.blob].is_there;
            let how = check(&self.blobs[request.blob], request, &answer, may_be_there, may_be_absent);
            self.note(how, 1);
            self.note("of disk", u64::from(answer.header("cache-status").contains("detail=disk")));
        }
    }

    async fn hang_up(&mut self, blob: usize) {
        let blob = &mut self.blobs[blob];
        blob.is_size_doubtful |= self.manner == Manner::Padded;
        let came = self.edge.hang_up(blob.id).await;
        self.note("hung up", u64::from(came.is_some()));
    }

    /// Waits until the edge knows all purges.
    async fn wait_for_purges(&self) {
        // One that answers nothing but errors tells of no purges either.
        self.edge.origin.behave(Manner::Honest);
        self.edge.origin.wait_for_purges_known().await;
        self.edge.origin.behave(self.manner);
    }

    async fn restarted(mut self, config: Config, damages: &[Damage]) -> Self {
        self.edge.edge.close().await;
        let stats = self.edge.edge.stats();
        self.note("evicted", stats.disk_evicted);
        self.note("corrupt", stats.disk_corrupt);
        self.note("restarted", 1);
        let Self { edge, blobs, manner, mut happened } = self;
        let edge = edge
            .restart(config, |dir| {
                for damage in damages.iter().filter(|damage| damage.strike(dir)) {
                    *happened.entry(DAMAGES[damage.kind].to_owned()).or_default() += 1;
                }
            })
            .await;
        let world = Self { edge, blobs, manner, happened };
        world.edge.origin.forget_who_knows();
        world.wait_for_purges().await;
        world
    }

    /// Never more than it may take, whether the thread that writes is done or not.
    fn assert_within_its_bounds(&self) {
        let files = fs::read_dir(self.edge.dir.path()).unwrap();
        // One may go between being listed and being looked at.
        let taken: u64 = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.blocks() * 512)).sum();
        assert!(taken <= DISK, "{taken} bytes in a tier of {DISK}");
    }

    /// An honest origin, and time: everything that is there can be had, and nothing else.
    async fn in_the_end(mut self) -> Happened {
        self.manner = Manner::Honest;
        self.edge.origin.behave(Manner::Honest);
        let patient = Config { upstream_answer_timeout_ms: 60_000, upstream_idle_timeout_ms: 60_000, ..config() };
        let mut world = self.restarted(patient, &[]).await;
        for Blob { id, bytes, is_there, .. } in &world.blobs {
            let mut answer = world.edge.get(*id, &[]).await;
            if *is_there && !answer.is_whole {
                // A size that was told wrongly is found out at the end of the blob, and not believed again.
                answer = world.edge.get(*id, &[]).await;
            }
            match is_there {
                true => answer.assert_is(StatusCode::OK, bytes),
                false => assert_eq!(answer.refusal(), "404 blob-not-found"),
            }
            world.assert_within_its_bounds();
        }
        let misdeeds = world.edge.origin.misdeeds();
        misdeeds.into_iter().for_each(|(what, times)| world.note(&what, times));
        world.happened
    }

    fn note(&mut self, what: &str, times: u64) {
        *self.happened.entry(what.to_owned()).or_default() += times;
    }
}

fn range_header(shape: &Shape, len: usize) -> String {
    match shape {
        Shape::Whole | Shape::Head => String::new(),
        Shape::Suffix(bytes) => format!("bytes=-{bytes}"),
        Shape::Ranges(ranges) => {
            let ranges = ranges.iter().map(|(from, bytes)| {
                let from = from.within(len) as u64;
                format!("{from}-{}", from + u64::from(*bytes))
            });
            format!("bytes={}", ranges.collect::<Vec<_>>().join(","))
        }
    }
}

/// Whether `answer` may be given to `request`; how it ended, if so.
fn check(blob: &Blob, request: &Request, answer: &Answer, may_be_there: bool, may_be_absent: bool) -> &'static str {
    let len = blob.bytes.len() as u64;
    let status = answer.status;
    match status {
        StatusCode::NOT_FOUND => {
            assert!(may_be_absent, "{request:?}: a blob that is there was not found");
            return "refused";
        }
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => return "refused",
        _ => assert!(may_be_there, "{request:?}: {status} for a blob that was purged"),
    }
    let asked: Vec<_> = match &request.shape {
        Shape::Whole | Shape::Head => std::iter::once(0..len).collect(),
        ranges => {
            let specs = parse_ranges(&range_header(ranges, blob.bytes.len())).expect("ranges as we write them");
            specs.iter().filter_map(|spec| spec.resolve(len)).map(|range| range.start..range.end).collect()
        }
    };
    if matches!(request.shape, Shape::Head) {
        assert_eq!(status, StatusCode::OK);
        let told = answer.header("content-length");
        assert!(told == len.to_string() || blob.is_size_doubtful, "HEAD says {told} of {len} bytes");
        return "whole";
    }
    let served = match status {
        StatusCode::RANGE_NOT_SATISFIABLE => {
            assert!(asked.is_empty(), "{request:?}: refused, and there are such bytes");
            return "refused";
        }
        StatusCode::OK => match_part(blob, 0..told_len(answer, len), &answer.body, answer.is_whole).0,
        StatusCode::PARTIAL_CONTENT if answer.header("content-range").is_empty() => match_parts(blob, answer),
        StatusCode::PARTIAL_CONTENT => {
            let told = range_told(blob, answer.header("content-range"));
            match_part(blob, told, &answer.body, answer.is_whole).0
        }
        _ => panic!("{request:?} was answered {status}"),
    };
    if !answer.is_whole {
        return "cut";
    }
    let mut missing = asked.iter().filter(|asked| !served.iter().any(|served| covers(served, asked)));
    assert!(missing.next().is_none(), "{request:?} wanted {asked:?} and got {served:?}, as if that were all");
    "whole"
}

fn covers(served: &Range<u64>, asked: &Range<u64>) -> bool {
    served.start <= asked.start && asked.end <= served.end
}

fn told_len(answer: &Answer, len: u64) -> u64 {
    answer.header("content-length").parse().unwrap_or(len)
}

fn range_told(blob: &Blob, header: &str) -> Range<u64> {
    let (range, size) = parse_content_range(header).expect("a Content-Range");
    assert!(size == blob.bytes.len() as u64 || blob.is_size_doubtful, "{header} of {} bytes", blob.bytes.len());
    range.start..range.end
}

/// Holds the bytes of one range against the blob: as many as came, and all of them unless it was cut. What follows them
/// comes back too.
fn match_part<'b>(blob: &Blob, told: Range<u64>, body: &'b [u8], is_whole: bool) -> (Vec<Range<u64>>, &'b [u8]) {
    let len = (told.end - told.start) as usize;
    let came = len.min(body.len());
    let start = told.start as usize;
    let right = blob.bytes.get(start..start + came).is_some_and(|right| right == &body[..came]);
    assert!(right, "wrong bytes within {told:?} of {} bytes", blob.bytes.len());
    assert!(came == len || !is_whole, "{came} of {len} bytes, and a clean end");
    (vec![told], &body[came..])
}

/// The same for a body of several ranges, which may be cut anywhere.
fn match_parts(blob: &Blob, answer: &Answer) -> Vec<Range<u64>> {
    let boundary = answer.header("content-type").strip_prefix("multipart/byteranges; boundary=").expect("several");
    let marker = format!("\r\n--{boundary}");
    let (mut left, mut served) = (&answer.body[..], Vec::new());
    loop {
        let Some(rest) = left.strip_prefix(marker.as_bytes()) else {
            assert!(marker.as_bytes().starts_with(left), "something else between parts");
            assert!(!answer.is_whole, "no end of the parts, and a clean end");
            return served;
        };
        if rest == b"--\r\n" {
            return served;
        }
        let Some(head_end) = rest.windows(4).position(|window| window == b"\r\n\r\n") else {
            assert!(!answer.is_whole, "a part's head without an end, and a clean end");
            return served;
        };
        let head = std::str::from_utf8(&rest[..head_end]).unwrap();
        let range =
            head.lines().find_map(|line| line.strip_prefix("content-range: ")).expect("a part says where it is");
        let (part, rest) = match_part(blob, range_told(blob, range), &rest[head_end + 4..], answer.is_whole);
        served.extend(part);
        left = rest;
    }
}

impl Damage {
    /// Damages the tier in `dir`. Gives whether there was anything to damage.
    fn strike(&self, dir: &Path) -> bool {
        let log = dir.join("index.log");
        let file = || {
            let mut files = cache_files(dir);
            files.sort();
            let at = self.file % files.len().max(1);
            (!files.is_empty()).then(|| files.swap_remove(at))
        };
        match self.kind {
            0 => file().is_some_and(|file| self.flip(&file)),
            1 => file().is_some_and(|file| self.cut(&file)),
            2 => file().is_some_and(|file| fs::remove_file(file).is_ok()),
            3 => file().is_some_and(|file| self.swap(&file)),
            4 => fs::write(dir.join("0000000999.cache"), &BLOBS[6]).is_ok(),
            5 => self.cut(&log),
            6 => self.flip(&log),
            7 => fs::remove_file(log).is_ok(),
            _ => {
                let Some((log, len)) = Self::open(&log) else { return false };
                log.write_all_at(&[0x5A; 200], len as u64).is_ok()
            }
        }
    }

    /// A file and its length, unless an earlier damage took it.
    fn open(file: &Path) -> Option<(File, usize)> {
        let file = File::options().read(true).write(true).open(file).ok()?;
        let len = file.metadata().unwrap().len() as usize;
        Some((file, len))
    }

    fn flip(&self, file: &Path) -> bool {
        let Some((file, len)) = Self::open(file) else { return false };
        let from = self.at.within(len);
        let mut bytes = vec![0; (len - from).min(SLICE)];
        file.read_exact_at(&mut bytes, from as u64).unwrap();
        // Not in a hole.
        let Some(at) = bytes.iter().position(|byte| *byte != 0) else { return false };
        file.write_all_at(&[bytes[at] ^ 0x10], (from + at) as u64).unwrap();
        true
    }

    fn cut(&self, file: &Path) -> bool {
        let Some((file, len)) = Self::open(file) else { return false };
        let to = self.at.within(len);
        file.set_len(to as u64).unwrap();
        to < len
    }

    fn swap(&self, file: &Path) -> bool {
        const BLOCK: usize = 4096;
        let Some((file, len)) = Self::open(file) else { return false };
        let blocks = len / BLOCK;
        let (one, other) = (self.at.within(len) / BLOCK, (self.at.within(len) / BLOCK + 7) % blocks.max(1));
        if blocks < 2 || one == other || one >= blocks {
            return false;
        }
        let (mut a, mut b) = ([0; BLOCK], [0; BLOCK]);
        file.read_exact_at(&mut a, (one * BLOCK) as u64).unwrap();
        file.read_exact_at(&mut b, (other * BLOCK) as u64).unwrap();
        file.write_all_at(&b, (one * BLOCK) as u64).unwrap();
        file.write_all_at(&a, (other * BLOCK) as u64).unwrap();
        a != b
    }
}

fn cache_files(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ext| ext == "cache")).collect()
}
