//! Two origins, two processes, one upload.

use std::sync::Barrier;

use libtest_mimic::{Failed, Trial};

use super::listing::look;
use super::scene::Scene;
use crate::harness::uploader::{Dice, Tus, content};

/// Uploads that both origins take, each to its end.
const UPLOADS: u64 = 6;

/// Bytes of each: two parts and what is behind them.
const UPLOAD_BYTES: u64 = 11 << 20;

/// A request brings less.
const REQUEST_BYTES_MAX: u64 = 3 << 20;

pub fn trials() -> Vec<Trial> {
    vec![Trial::test("of_two_origins_at_one_upload_one_wins_and_nothing_acknowledged_changes", one_wins)]
}

/// A stretch of an upload, and whose bytes may be there.
struct Stretch {
    from: u64,
    to: u64,
    /// The seeds of their content: one when it was acknowledged, both when the answer was lost.
    seeds: Vec<u64>,
}

/// Clients send different bytes for the same place through different origins, in turn and at once. Whoever was
/// acknowledged has their bytes in the blob.
fn one_wins() -> Result<(), Failed> {
    let mut scene = Scene::start();
    let other = scene.another_origin();
    let origins = [scene.url(), other.url.clone()];
    let tus = [Tus::new(&scene.upload_grant), Tus::new(&scene.upload_grant)];
    let mut dice = Dice::new(u64::from(std::process::id()));
    let (mut in_turn, mut won, mut lost) = (0, 0, 0);
    for upload in 0..UPLOADS {
        let url = tus[0].create(&origins[0], UPLOAD_BYTES).ok_or("no upload was created")?;
        let urls = [url.clone(), url.replace(&origins[0], &origins[1])];
        let mut stretches: Vec<Stretch> = Vec::new();
        let (mut offset, mut round) = (0, 0);
        let blob = loop {
            round += 1;
            let bytes = (1 + dice.below(REQUEST_BYTES_MAX)).min(UPLOAD_BYTES - offset);
            let at_once = dice.below(3) > 0;
            let seeds = [0, 1].map(|who| (upload << 32) | (round << 1) | who);
            let barrier = Barrier::new(2);
            let answers = std::thread::scope(|scope| {
                [0, 1]
                    .map(|who| {
                        let (tus, url, barrier) = (&tus[who], &urls[who], &barrier);
                        scope.spawn(move || {
                            if at_once {
                                barrier.wait();
                            } else if who as u64 != round % 2 {
                                return None;
                            }
                            tus.patch(url, offset, &content(seeds[who], bytes))
                        })
                    })
                    .map(|asked| asked.join().expect("a client does not panic"))
            });
            let standing = [0, 1].map(|who| tus[who].head(&urls[who]));
            let [Some(Ok((now, blob))), Some(Ok((there, same)))] = standing else {
                return Err(format!("an origin does not know the upload: {standing:?}").into());
            };
            if (now, &blob) != (there, &same) {
                return Err(format!("one origin is at {now} {blob:?}, the other at {there} {same:?}").into());
            }
            let winners: Vec<usize> = (0..2).filter(|who| answers[*who].is_some()).collect();
            match (&winners[..], at_once) {
                ([_], false) => in_turn += 1,
                ([], false) => return Err(format!("nobody raced, and {offset} was not gone on from").into()),
                ([_], true) => won += 1,
                ([], true) => lost += 1,
                _ => return Err(format!("both were told that they went on from {offset}: {answers:?}").into()),
            }
            if let Some(told) = winners.first().and_then(|who| answers[*who].as_ref()).map(|(told, _)| *told)
                && told != now
            {
                return Err(format!("{told} was acknowledged, and it is at {now}").into());
            }
            let whose = if winners.is_empty() { vec![0, 1] } else { winners };
            let seeds = whose.into_iter().map(|who| seeds[who]).collect();
            stretches.push(Stretch { from: offset, to: now, seeds });
            offset = now;
            if let Some(blob) = blob {
                break blob;
            }
        };
        let url = format!("{}/v1/blobs/{blob}", scene.url());
        let got = scene.http.get(url).bearer_auth(&scene.media_grant).send()?.error_for_status()?.bytes()?;
        check(&got, &stretches)?;
    }
    eprintln!("{in_turn} requests in turn; {won} races that one won, {lost} that nobody did");
    if in_turn == 0 || won == 0 {
        return Err("nobody raced: that shows nothing".into());
    }
    other.kill();
    scene.service.take().expect("it runs").kill();
    scene.start_node(&[("WAXWING_FAULT", "collect-at-once")]);
    scene.admin(&["gc"]).ok();
    let looked = look(&scene.seaweed);
    if looked.wrong.is_empty() { Ok(()) } else { Err(format!("after collecting: {:#?}", looked.wrong).into()) }
}

fn check(got: &[u8], stretches: &[Stretch]) -> Result<(), Failed> {
    if got.len() as u64 != UPLOAD_BYTES {
        return Err(format!("the blob has {} bytes", got.len()).into());
    }
    for Stretch { from, to, seeds } in stretches {
        let index = |at: &u64| usize::try_from(*at).expect("uploads here are small");
        let there = &got[index(from)..index(to)];
        if !seeds.iter().any(|seed| content(*seed, to - from) == there) {
            return Err(format!("{from} to {to} are not the bytes that were acknowledged").into());
        }
    }
    Ok(())
}
