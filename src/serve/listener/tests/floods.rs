//! HTTP/2 by raw frames, as only an attacker writes them.

use super::*;

/// A frame of RFC 9113 §4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `GET http://x/` in HPACK.
const REQUEST: &[u8] = b"\x82\x86\x84\x41\x01x";

/// A connection whose preface and settings were sent.
async fn connect(listening: &Listening) -> TcpStream {
    let mut stream = listening.connect().await;
    let settings = frame(4, 0, 0, &[]);
    stream.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..]].concat()).await.unwrap();
    stream
}

/// Sends `flood` until the server ends the connection. Gives how often it was sent, and what came back.
async fn flood(mut stream: TcpStream, most: usize, mut next: impl FnMut(usize) -> Vec<u8>) -> (usize, Vec<u8>) {
    let mut answer = Vec::new();
    for sent in 0..most {
        let (mut reading, mut writing) = stream.split();
        let frames = next(sent);
        let end = tokio::select! {
            written = writing.write_all(&frames) => written.is_err(),
            read = reading.read_buf(&mut answer) => !matches!(read, Ok(1..)),
        };
        if end {
            // What came before the end is there still, also when it was a write that failed.
            let _ = stream.read_to_end(&mut answer).await;
            return (sent, answer);
        }
    }
    let _ = stream.read_to_end(&mut answer).await;
    (most, answer)
}

/// Whether `answer` has a GOAWAY frame.
fn has_goaway(mut answer: &[u8]) -> bool {
    while let Some((head, rest)) = answer.split_first_chunk::<9>() {
        if head[3] == GOAWAY {
            return true;
        }
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        answer = rest.get(length..).unwrap_or_default();
    }
    false
}

async fn start_with_room() -> Listening {
    start_with(Entry::default(), Limits::default()).await
}

/// CVE-2023-44487: requests that are taken back at once cost the client nothing, and us all that a request costs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_resets_what_it_asks_is_sent_away() {
    let listening = start_with_room().await;
    let stream = connect(&listening).await;
    let pairs = 100;
    let (sent, answer) = flood(stream, 1000, |turn| {
        let first = u32::try_from(turn * pairs).unwrap();
        let streams = (first..first + u32::try_from(pairs).unwrap()).map(|n| n * 2 + 1);
        let pair = |stream| {
            let reset = frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
            [frame(HEADERS, END_STREAM | END_HEADERS, stream, REQUEST), reset].concat()
        };
        streams.flat_map(pair).collect()
    })
    .await;
    assert!(sent < 1000, "100,000 requests were taken back, and nobody minded");
    assert!(has_goaway(&answer), "it is told so");
    let handled = listening.handled.load(Relaxed);
    assert!(handled < 20_000, "{handled} of them came to a handler");
    assert!(ask(&mut listening.connect().await).await.ends_with("is here"), "others are served");
}

/// A head that never ends: without a bound it would fill memory, or the processor with decoding.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_without_an_end_is_cut_off() {
    for field in [
        // Literal fields without indexing, 100 bytes of value each; and empty frames, which cost nothing but time.
        [&b"\x00\x01a\x64"[..], &[b'v'; 100]].concat().repeat(100),
        Vec::new(),
    ] {
        let listening = start_with_room().await;
        let mut stream = connect(&listening).await;
        stream.write_all(&frame(HEADERS, END_STREAM, 1, REQUEST)).await.unwrap();
        let (sent, _) = flood(stream, 20_000, |_| frame(CONTINUATION, 0, 1, &field)).await;
        assert!(sent < 20_000, "frames of {} bytes", field.len());
        assert_eq!(listening.handled.load(Relaxed), 0);
        assert!(ask(&mut listening.connect().await).await.ends_with("is here"), "others are served");
    }
}
