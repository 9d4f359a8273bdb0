//! The engine against a model of it: whatever clients, networks and restarts do, in whatever order, offsets and blobs are
//! those that a few lines of arithmetic say.

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::*;

/// Uploads of a run: parts of a concatenation, and one that becomes a blob of its own.
const UPLOADS: usize = 4;
const PLAIN: usize = 3;

/// How a request's content ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Whole,
    /// The connection breaks after the bytes.
    Cut,
    /// With a digest of the bytes.
    Digest,
    /// With a digest of other bytes.
    OtherDigest,
    /// With a digest, and the connection breaks: nobody knows whether these were all the bytes.
    DigestCut,
}

#[derive(Clone, Debug)]
enum Step {
    Append {
        upload: usize,
        bytes: u64,
        end: End,
    },
    /// A client that believes another offset than ours.
    Elsewhere {
        upload: usize,
        off_by: u64,
    },
    /// More than the upload announced.
    TooMuch {
        upload: usize,
        excess: u64,
    },
    /// A request that sends a while and then falls silent; whatever comes next takes over.
    Stall {
        upload: usize,
        bytes: u64,
    },
    Concatenate {
        parts: Vec<usize>,
    },
    /// Minutes in which nothing comes: room that was reserved is given back.
    Idle,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let upload = 0..UPLOADS;
    let end = prop_oneof![
        4 => Just(End::Whole),
        3 => Just(End::Cut),
        2 => Just(End::Digest),
        1 => Just(End::OtherDigest),
        1 => Just(End::DigestCut)
    ];
    prop_oneof![
        8 => (upload.clone(), 0_u64..500_000, end).prop_map(|(upload, bytes, end)| Step::Append { upload, bytes, end }),
        1 => (upload.clone(), 1_u64..1000).prop_map(|(upload, off_by)| Step::Elsewhere { upload, off_by }),
        1 => (upload.clone(), 1_u64..100_000).prop_map(|(upload, excess)| Step::TooMuch { upload, excess }),
        2 => (upload, 1_u64..300_000).prop_map(|(upload, bytes)| Step::Stall { upload, bytes }),
        2 => prop::collection::vec(0..PLAIN, 1..5).prop_map(|parts| Step::Concatenate { parts }),
        1 => Just(Step::Idle),
        1 => Just(Step::Restart),
    ]
}

/// An upload as it should be.
struct Model {
    id: UploadId,
    data: Bytes,
    /// Its length is told with its first append that is not cut.
    length: Option<u64>,
    offset: u64,
}

impl Model {
    fn len(&self) -> u64 {
        self.data.len() as u64
    }

    fn is_blob(&self, upload: usize) -> bool {
        upload == PLAIN && self.offset == self.len()
    }

    fn piece(&self, bytes: u64) -> Bytes {
        let end = (self.offset + bytes).min(self.len());
        self.data.slice(self.offset as usize..end as usize)
    }
}

fn sha256(bytes: &[u8]) -> ContentDigest {
    ContentDigest::Told(Digest::new(DigestAlgorithm::Sha256, Sha256::digest(bytes).to_vec()).unwrap())
}

async fn begin(engine: &Engine, lengths: &[u64], deferred: bool) -> Vec<Model> {
    let mut models = Vec::new();
    for (upload, len) in lengths.iter().enumerate() {
        let length = (!deferred).then_some(*len);
        let new = NewUpload { partial: upload != PLAIN, ..Engine::new_upload(length) };
        let id = engine.uploads.create(new, None, NOW).await.unwrap().id;
        // Different bytes in each.
        let data = bytes(*len + upload as u64).slice(upload..);
        models.push(Model { id, data, length, offset: 0 });
    }
    models
}

async fn append(engine: &Engine, upload: usize, model: &mut Model, bytes: u64, end: End) {
    if model.is_blob(upload) {
        let again = engine.append(model.id, model.offset, Bytes::new()).await.unwrap();
        assert_eq!(again.blob, Some(blob_of(&model.data, ALICE).0.id));
        let more = engine.append(model.id, model.offset, Bytes::from_static(b"x")).await;
        assert!(matches!(more, Err(UploadError::AlreadyComplete)));
        return;
    }
    let piece = model.piece(bytes);
    let content_digest = match end {
        End::Whole | End::Cut => None,
        End::Digest | End::DigestCut => Some(sha256(&piece)),
        End::OtherDigest => Some(sha256(b"other")),
    };
    let is_cut = matches!(end, End::Cut | End::DigestCut);
    let content = if is_cut { cut(piece.clone()) } else { whole(piece.clone()) };
    let request = Append { length: Some(model.len()), content_digest, ..to(model.id, model.offset) };
    let answer = engine.uploads.append(request, content, NOW).await;
    let kept = !matches!(end, End::OtherDigest | End::DigestCut);
    if kept {
        model.offset += piece.len() as u64;
        model.length = Some(model.len());
    }
    match end {
        End::Whole | End::Digest => assert_eq!(answer.unwrap().offset, model.offset),
        // Cut after its last byte, it is complete all the same.
        End::Cut if model.is_blob(upload) => assert!(answer.unwrap().blob.is_some()),
        End::Cut | End::DigestCut => assert!(matches!(answer, Err(UploadError::Cut))),
        End::OtherDigest => assert!(matches!(answer, Err(UploadError::DigestMismatch))),
    }
}

async fn concatenate(engine: &Engine, models: &[Model], parts: &[usize]) {
    let new = NewFinal {
        allowance: alice(),
        parts: parts.iter().map(|part| models[*part].id).collect(),
        named: "as it was named".into(),
        metadata: None,
    };
    let made = engine.uploads.concatenate(new.clone(), NOW).await;
    if parts.iter().any(|part| models[*part].length != Some(models[*part].offset)) {
        assert!(matches!(made, Err(UploadError::PartUnfinished { .. })));
        return;
    }
    let made = made.unwrap();
    let data: Vec<u8> = parts.iter().flat_map(|part| models[*part].data.clone()).collect();
    let blob = blob_of(&data, ALICE).0.id;
    assert_eq!((made.blob, made.offset), (Some(blob), data.len() as u64));
    assert_eq!(engine.blob_bytes(blob).await, data);
    assert_eq!(engine.uploads.concatenate(new, NOW).await.unwrap(), made);
}

async fn run(lengths: &[u64], deferred: bool, steps: Vec<Step>) {
    let mut engine = Engine::start();
    let mut models = begin(&engine, lengths, deferred).await;
    for step in steps {
        match step {
            Step::Append { upload, bytes, end } => append(&engine, upload, &mut models[upload], bytes, end).await,
            Step::Elsewhere { upload, off_by } => {
                let model = &models[upload];
                let answer = engine.append(model.id, model.offset + off_by, Bytes::from_static(b"x")).await;
                assert!(matches!(answer, Err(UploadError::OffsetMismatch { stored, .. }) if stored == model.offset));
            }
            Step::TooMuch { upload, excess } => {
                let model = &models[upload];
                let request = Append { length: Some(model.len()), ..to(model.id, model.offset) };
                let more = bytes(model.len() - model.offset + excess);
                let answer = engine.uploads.append(request, whole(more), NOW).await;
                match model.is_blob(upload) {
                    true => assert!(matches!(answer, Err(UploadError::AlreadyComplete))),
                    false => assert!(matches!(answer, Err(UploadError::TooLarge { limit }) if limit == model.len())),
                }
            }
            Step::Stall { upload, bytes } => {
                let model = &mut models[upload];
                let piece = model.piece(bytes);
                let (half, all) = (piece.len() as u64 / 2, piece.len() as u64);
                if model.offset + all < model.len() && half > 0 {
                    let sending = engine.send(model.id, model.offset);
                    // The second is handed over when the first was taken: then the request has its turn.
                    sending.piece(piece.slice(..half as usize)).await;
                    sending.piece(piece.slice(half as usize..)).await;
                    let offset = engine.offset(model.id).await;
                    assert!([half, all].contains(&(offset - model.offset)), "{offset}");
                    assert!(matches!(sending.request.await.unwrap(), Err(UploadError::TakenOver)));
                    model.offset = offset;
                }
            }
            Step::Concatenate { parts } => concatenate(&engine, &models, &parts).await,
            Step::Idle => {
                let later = NOW.plus(idle::ROOM_KEPT);
                assert_eq!(engine.uploads.sweep(later).await.unwrap(), Swept::default());
            }
            Step::Restart => engine = engine.restart(),
        }
        for (upload, model) in models.iter().enumerate() {
            let status = engine.uploads.status(ALICE, model.id, NOW).await.unwrap();
            assert_eq!((status.offset, status.blob.is_some()), (model.offset, model.is_blob(upload)));
        }
    }
    for (upload, model) in models.iter_mut().enumerate() {
        append(&engine, upload, model, u64::MAX >> 1, End::Whole).await;
    }
    assert_eq!(engine.blob_bytes(blob_of(&models[PLAIN].data, ALICE).0.id).await, models[PLAIN].data);
    concatenate(&engine, &models, &[2, 0, 1]).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 100, ..ProptestConfig::default() })]
    #[test]
    fn the_engine_is_its_model(
        lengths in prop::collection::vec(1_u64..1_500_000, UPLOADS),
        deferred in any::<bool>(),
        steps in prop::collection::vec(step(), 1..16),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(&lengths, deferred, steps));
    }
}
