//! kill -9 at each point of the way from bytes to an acknowledgement, and of compaction.
//!
//! Built with the feature `fault-injection`, the node kills itself at the point that `FAILPOINTS` names, the n-th time it
//! gets there.

use std::os::unix::process::ExitStatusExt as _;

use libtest_mimic::{Failed, Trial};

use super::scene::{Scene, trial};
use crate::harness::uploader::Dice;
use crate::support::wait_for;

/// Deaths at each point.
const DEATHS: usize = 6;

/// Requests until which a node must have died.
const REQUESTS_MAX: usize = 400;

/// Points that every upload comes by.
const UPLOADING: [&str; 5] = ["data-synced", "name-synced", "blob-packed", "records-committed", "files-unneeded"];

/// Points of compaction, which here never rests.
const COMPACTING: [&str; 3] = ["copies-packed", "pack-emptied", "pack-removed"];

/// Each with a test.
pub fn trials() -> Vec<Trial> {
    let missing = (!cfg!(feature = "fault-injection")).then_some("it needs the feature fault-injection");
    let point = |point: &'static str, faults: &'static str| {
        trial(&format!("killed_at_{}", point.replace('-', "_")), missing, move || killed_at(point, faults))
    };
    let uploading = UPLOADING.into_iter().map(|name| point(name, ""));
    let compacting = COMPACTING.into_iter().map(|name| point(name, "small-packs,churn-packs"));
    let idle = trial("killed_at_room_given_back", missing, killed_as_idle_uploads_give_back_room);
    uploading.chain(compacting).chain([idle]).collect()
}

fn killed_at(point: &str, faults: &str) -> Result<(), Failed> {
    let mut scene = Scene::start(tempfile::tempdir()?, None, 0);
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    let mut dice = Dice::new(seed);
    let mut deaths = 0;
    for round in 0..DEATHS as u64 {
        let points = format!("{point}={}*off->return", dice.below(12));
        scene.restart(&[("FAILPOINTS", &points), ("WAXWING_FAULT", faults)]);
        upload_until_dead(&mut scene, &mut dice, round << 32);
        let mut service = scene.service.take().expect("it was started");
        // The connection may break a moment before the process is gone.
        let ended = wait_for("the node to die", || service.ended());
        if ended.signal() != Some(9) {
            return Err(format!("the node was not killed at {point}, it ended by {ended}").into());
        }
        deaths += 1;
        scene.restart(&[]);
        scene.check_all()?;
    }
    scene.finish_all()?;
    scene.restart(&[]);
    scene.check_all()?;
    let acknowledged = scene.told.values().filter(|told| told.blob.is_some()).count();
    eprintln!("{deaths} deaths at {point}, {acknowledged} blobs acknowledged and there");
    if deaths < DEATHS || acknowledged < DEATHS {
        return Err(format!("{deaths} deaths and {acknowledged} blobs show nothing").into());
    }
    Ok(())
}

/// Uploads that stall keep what was acknowledged, also when the node dies just as it gives back the room they do not fill.
fn killed_as_idle_uploads_give_back_room() -> Result<(), Failed> {
    const STALLED: u64 = 4;
    let mut scene = Scene::start(tempfile::tempdir()?, None, 0);
    for n in 0..STALLED {
        let Some(Ok(url)) = scene.create(n, 3_000_000, false) else { panic!("an upload was refused") };
        assert_eq!(scene.append(&url, 700_001, None), Some(204));
    }
    for round in 0..STALLED {
        // With twice the time to live, a record tells of a last byte that came a day ago: an upload that is idle.
        let points = format!("room-given-back={round}*off->return");
        scene.restart(&[("FAILPOINTS", &points), ("WAXWING_ORIGIN__UPLOAD_EXPIRY_S", "172800")]);
        let mut service = scene.service.take().expect("it was started");
        let ended = wait_for("the node to die", || service.ended());
        if ended.signal() != Some(9) {
            return Err(format!("the node was not killed as it gave back room, it ended by {ended}").into());
        }
        scene.restart(&[]);
        scene.check_all()?;
        // The room is taken again.
        for url in scene.told.keys().cloned().collect::<Vec<_>>() {
            assert_eq!(scene.append(&url, 1, None), Some(204), "{url}");
        }
    }
    scene.finish_all()
}

/// Uploads small blobs and larger ones, a part at a time, until nobody answers.
fn upload_until_dead(scene: &mut Scene, dice: &mut Dice, first_seed: u64) {
    // What the last death left half done goes on first.
    let mut unfinished: Vec<String> =
        scene.told.iter().filter(|(_, told)| told.blob.is_none()).map(|(url, _)| url.clone()).collect();
    for n in 0..REQUESTS_MAX as u64 {
        let url = match unfinished.pop() {
            Some(url) => url,
            None => {
                let max = if dice.below(2) == 0 { 600_000 } else { 2_500_000 };
                let len = 1 + dice.below(max);
                match scene.create(first_seed + n, len, false) {
                    Some(Ok(url)) => url,
                    Some(Err(status)) => panic!("refused with {status}"),
                    None => return,
                }
            }
        };
        let Some(status) = scene.append(&url, 1 + dice.below(1 << 20), None) else { return };
        assert_eq!(status, 204, "{url}");
        if scene.told[&url].blob.is_none() {
            unfinished.push(url);
        }
    }
    panic!("{REQUESTS_MAX} requests and nobody died: the point was not met");
}
