//! Requests that are in one another's way, or in the way of the origin's end: in every dialect.
//!
//! A client on a bad network has several connections to the origin, of which it knows one. Whatever they do to each other,
//! what had reached the origin counts, and the client's next question is answered.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use waxwing_origin::Config;

use crate::dialects::Dialect::Ranges;
use crate::dialects::{ALL, Client, LENGTH, sending, told};
use crate::harness::{Answer, TestOrigin, id_of, sample};

/// A server that is being replaced keeps what came, and says that its successor will go on.
#[tokio::test]
async fn a_restart_amid_an_append_keeps_what_came() {
    let mut origin = TestOrigin::start().await;
    for dialect in ALL {
        let client = Client::of_alice(&origin, dialect);
        let path = client.created(Some(LENGTH), &[]).await;
        let sending = sending(&client, &path, b"abcd").await;
        origin.origin.close().await;
        told(&Answer::read(sending).await.expect("the request that runs is answered"), 503, "closing", dialect);
        told(&client.append(&path, 4, b"efghij", &[]).await, 503, "closing", dialect);
        origin = origin.crash_and_restart().await;
        assert_eq!(Client::of_alice(&origin, dialect).offset(&path).await, 4, "{dialect:?}");
    }
}

/// The newest request has the upload; the older is told in a way that makes its client ask, and asking is never refused.
#[tokio::test]
async fn an_older_request_makes_way() {
    let origin = TestOrigin::start().await;
    for dialect in ALL {
        let client = Client::of_alice(&origin, dialect);
        let path = client.created(Some(LENGTH), &[]).await;
        let old = sending(&client, &path, b"abcd").await;
        let began = Instant::now();
        assert_eq!(client.offset(&path).await, 4, "{dialect:?}: what came is kept");
        assert!(began.elapsed() < Duration::from_secs(2), "{dialect:?}: {:?}", began.elapsed());
        let status = if dialect == Ranges { 503 } else { 409 };
        told(&Answer::read(old).await.expect("the old request is answered"), status, "taken-over", dialect);
        assert_eq!(client.append(&path, 4, b"efghij", &[]).await.blob(), id_of(b"abcdefghij"), "{dialect:?}");
    }
}

/// Two connections send the same bytes at once: one of them at most goes through, the other is told in a way that makes its
/// client ask, and nothing is mixed up or lost.
#[tokio::test]
async fn connections_that_race_on_an_upload_spoil_nothing() {
    let origin = TestOrigin::start().await;
    let bytes = sample(1 << 20);
    for dialect in ALL {
        let client = Client::of_alice(&origin, dialect);
        for _ in 0..8 {
            let path = client.created(Some(bytes.len()), &[]).await;
            let append = |from: usize| client.append_of(&path, from, &bytes[from..], Some(bytes.len()), &[]);
            let (one, other) = tokio::join!(append(0), append(0));
            let mut finished = 0;
            for answer in [&one, &other] {
                match (answer.status, answer.header("waxwing-blob")) {
                    (status, Some(blob)) if status < 300 => {
                        assert_eq!(blob, id_of(&bytes).to_string(), "{dialect:?}");
                        finished += 1;
                    }
                    (400 | 409 | 503, None) => {
                        let kind = answer.problem().kind;
                        let asks = [
                            "taken-over",
                            "offset-mismatch",
                            "mismatching-upload-offset",
                            "upload-complete",
                            "completed-upload",
                        ];
                        assert!(asks.iter().any(|slug| kind.ends_with(slug)), "{dialect:?}: {answer:?}");
                    }
                    _ => panic!("{dialect:?}: {answer:?}"),
                }
            }
            if finished == 0 {
                let offset = client.offset(&path).await;
                assert_eq!(append(offset).await.blob(), id_of(&bytes), "{dialect:?} from {offset}");
            }
        }
    }
}

/// A client that sends a byte now and then is never idle, and holds a connection for as long as it likes.
#[tokio::test]
async fn a_request_that_trickles_is_ended_with_its_prefix_kept() {
    let pace = Config { slow_bytes_per_s: 1000, slow_window_s: 1, ..Config::default() };
    let origin = TestOrigin::start_with(pace).await;
    for dialect in ALL {
        let client = Client::of_alice(&origin, dialect);
        let path = client.created(Some(LENGTH), &[]).await;
        let (reading, mut writing) = sending(&client, &path, b"a").await.into_split();
        let trickle = tokio::spawn(async move {
            for byte in "bcdefghi".chars() {
                tokio::time::sleep(Duration::from_millis(250)).await;
                if writing.write_all(&[byte as u8]).await.is_err() {
                    break;
                }
            }
            writing
        });
        let began = Instant::now();
        let answer = Answer::read(reading).await.expect("a slow client is told");
        assert!(began.elapsed() < Duration::from_secs(4), "{dialect:?}: {:?}", began.elapsed());
        told(&answer, 408, "too-slow", dialect);
        drop(trickle.await);
        let kept = client.offset(&path).await;
        assert!((3..=6).contains(&kept), "{dialect:?}: {kept} bytes of a second");
        assert_eq!(
            client.append(&path, kept, &b"abcdefghij"[kept..], &[]).await.blob(),
            id_of(b"abcdefghij"),
            "{dialect:?}: it goes on where it was"
        );
    }
}
