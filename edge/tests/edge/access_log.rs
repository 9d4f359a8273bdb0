//! The access log: every request, no grant.

use std::fs;

use http::header::{AUTHORIZATION, RANGE};
use http::{Method, StatusCode};
use tempfile::TempDir;
use waxwing_edge::Config;

use super::harness::{SLICE, TestEdge, media_grant, path, sample_bytes};
use super::origin::Manner;

#[tokio::test]
async fn each_request_is_a_line_and_no_line_holds_a_grant() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("access.jsonl");
    let edge = TestEdge::start_with(Config { access_log: Some(file.clone()), ..Config::default() }).await;
    let bytes = sample_bytes(3 * SLICE);
    let id = edge.origin.store(bytes.clone());
    let grant = media_grant();
    edge.get(id, &[(RANGE, "bytes=0-99")]).await;
    edge.head(id, &[]).await;
    edge.send(Method::GET, &format!("{}?grant={grant}", path(id)), &[(AUTHORIZATION, "Bearer canary-secret")]).await;
    edge.origin.behave(Manner::CutAt(2 * SLICE as u64));
    assert!(!edge.get(id, &[]).await.is_whole);

    let lines = loop {
        let text = fs::read_to_string(&file).unwrap();
        if text.lines().count() == 4 {
            break text;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    };
    assert!(!lines.contains(&grant) && !lines.contains("canary") && !lines.contains("Bearer"));
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (line, method, status, sent, whole) in [
        (0, "GET", 206, Some(100), true),
        (1, "HEAD", 200, Some(0), true),
        (2, "GET", 401, None, true),
        (3, "GET", 200, None, false),
    ] {
        let line = &lines[line];
        assert_eq!((&line["method"], &line["status"]), (&method.into(), &status.into()), "{line}");
        assert_eq!((&line["path"], &line["is_whole"]), (&path(id).into(), &whole.into()), "{line}");
        assert!(sent.is_none_or(|sent: u64| line["sent_bytes"] == sent), "{line}");
        assert!(
            line["at_ms"].as_u64().unwrap() > 1_700_000_000_000 && line["took_us"].as_u64() >= line["head_us"].as_u64()
        );
    }
    assert_eq!(lines[0]["range"], format!("bytes 0-99/{}", bytes.len()));
    assert_eq!(lines[1]["cache"], "waxwing; hit");
    assert_eq!(StatusCode::UNAUTHORIZED.as_u16(), lines[2]["status"].as_u64().unwrap() as u16);
}
