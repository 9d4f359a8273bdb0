//! curl: uploads typed by hand, in all three dialects it can be made to speak.

use std::process::Command;

use libtest_mimic::Trial;

use super::proxy::Cut;
use super::scene::Scene;
use super::tools::{on_path, trial};

const MIB: usize = 1 << 20;

pub fn trials() -> Vec<Trial> {
    let there = on_path("curl").is_some();
    vec![
        trial("curl_resumes_a_tus_upload_by_hand", "curl", there, resumes_tus),
        trial("curl_puts_a_blob_in_one_go", "curl", there, puts),
        trial("curl_resumes_a_put_with_content_range", "curl", there, resumes_put),
    ]
}

/// What curl got: the last answer's status and headers.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Runs curl; `None` when the connection was lost before an answer.
fn curl(scene: &Scene, args: &[&str]) -> Option<Answer> {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "60", "-o", "/dev/null", "-D", "-", "-H", "Expect:"])
        .args(["-H", &format!("Authorization: Bearer {}", scene.grant)])
        .args(args)
        .output()
        .unwrap();
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.trim_end().rsplit("\r\n\r\n").next().unwrap();
    let mut lines = last.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers =
        lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_owned(), value.to_owned()));
    Some(Answer { status, headers: headers.collect() })
}

/// The file from byte `from`, as a file of its own.
fn rest(scene: &Scene, from: usize) -> String {
    let path = scene.path("rest.bin");
    std::fs::write(&path, &std::fs::read(&scene.file).unwrap()[from..]).unwrap();
    path
}

fn resumes_tus() {
    const TUS: &str = "Tus-Resumable: 1.0.0";
    const TYPE: &str = "Content-Type: application/offset+octet-stream";
    let bytes = 6 * MIB;
    let scene = Scene::new(bytes, &[(3 * MIB as u64, Cut::Close)]);
    let length = format!("Upload-Length: {bytes}");
    let created = curl(&scene, &["-X", "POST", "-H", TUS, "-H", &length, &scene.endpoint()]).unwrap();
    assert_eq!(created.status, 201);
    let url = created.header("location").unwrap();

    let patch = ["-X", "PATCH", "-H", TUS, "-H", TYPE];
    let lost = curl(&scene, &[&patch[..], &["-H", "Upload-Offset: 0", "-T", scene.file(), url]].concat());
    assert!(lost.is_none(), "the connection was to be lost");
    let head = curl(&scene, &["-I", "-H", TUS, url]).unwrap();
    let offset: usize = head.header("upload-offset").unwrap().parse().unwrap();
    assert!(offset > 2 * MIB && offset <= 3 * MIB, "of 3 MiB sent, {offset} bytes were kept");
    let at = format!("Upload-Offset: {offset}");
    let done = curl(&scene, &[&patch[..], &["-H", &at, "-T", &rest(&scene, offset), url]].concat()).unwrap();

    assert_eq!(done.status, 204);
    scene.is_stored(done.header("waxwing-blob"));
}

fn puts() {
    let scene = Scene::new(2 * MIB + 1, &[]);
    let done = curl(&scene, &["-T", scene.file(), &format!("{}/v1/blobs", scene.wire.url)]).unwrap();
    assert!(matches!(done.status, 200 | 201), "{}", done.status);
    scene.is_stored(done.header("waxwing-blob"));
}

fn resumes_put() {
    let bytes = 6 * MIB;
    let scene = Scene::new(bytes, &[(3 * MIB as u64, Cut::Close)]);
    let begin = format!("{}?uploadType=resumable", scene.endpoint());
    let session = curl(&scene, &["-X", "POST", "-H", "Content-Length: 0", &begin]).unwrap();
    let url = session.header("location").unwrap();

    assert!(curl(&scene, &["-T", scene.file(), url]).is_none(), "the connection was to be lost");
    let query = format!("Content-Range: bytes */{bytes}");
    let held = curl(&scene, &["-X", "PUT", "-H", "Content-Length: 0", "-H", &query, url]).unwrap();
    assert_eq!(held.status, 308);
    let last: usize = held.header("range").unwrap().strip_prefix("bytes=0-").unwrap().parse().unwrap();
    assert!(last > 2 * MIB && last < 3 * MIB, "of 3 MiB sent, {last} bytes were kept");
    let range = format!("Content-Range: bytes {}-{}/{bytes}", last + 1, bytes - 1);
    let done = curl(&scene, &["-H", &range, "-T", &rest(&scene, last + 1), url]).unwrap();

    assert_eq!(done.status, 200);
    scene.is_stored(done.header("waxwing-blob"));
}
