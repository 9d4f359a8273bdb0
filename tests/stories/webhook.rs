//! A backend is told of each upload that became a blob, although it fails, hangs, and the server dies meanwhile.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use reqwest::blocking::Client;
use serde_json::Value;

use crate::support::{Service, register, waxwing};

/// How long a request may take to come: the pauses between tries grow from two seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request that came, not answered yet.
struct Told {
    headers: HashMap<String, String>,
    body: Value,
    connection: TcpStream,
}

impl Told {
    fn read(connection: TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(connection.try_clone().ok()?);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
            if line == "\r\n" {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        let headers = lines.iter().skip(1).filter_map(|line| line.split_once(": "));
        let headers: HashMap<_, _> = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
        reader.read_exact(&mut body).ok()?;
        Some(Self { headers, body: serde_json::from_slice(&body).ok()?, connection })
    }

    fn answer(mut self, status: &str) {
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        self.connection.write_all(answer.as_bytes()).unwrap();
    }

    fn id(&self) -> String {
        self.headers["webhook-id"].clone()
    }
}

/// A backend: its address, and what it is told.
fn backend() -> (String, Receiver<Told>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (telling, told) = channel();
    std::thread::spawn(move || {
        for request in listener.incoming().filter_map(|connection| Told::read(connection.ok()?)) {
            if telling.send(request).is_err() {
                return;
            }
        }
    });
    (format!("http://{address}/uploads"), told)
}

fn config(dir: &Path, url: &str) -> PathBuf {
    std::fs::write(dir.join("secret"), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    let text = format!(
        "listen = \"127.0.0.1:0\"\ndata = {:?}\n[messaging]\nregistration = \"open\"\n\
         [origin.webhook]\nurl = \"{url}\"\nsecret_file = {:?}\n",
        dir.join("data"),
        dir.join("secret"),
    );
    let path = dir.join("waxwing.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_backend_learns_of_every_blob_whatever_dies_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (url, told) = backend();
    let config = config(dir.path(), &url);
    let service = Service::serve(&config);
    register(dir.path(), &service.url, "alice");
    let grant = waxwing(dir.path(), &["grant", "upload", "--home", "alice"]).ok().stdout.trim().to_owned();
    let put = |service: &Service, bytes: &'static str| {
        let request = Client::new().put(format!("{}/v1/blobs", service.url)).bearer_auth(&grant).body(bytes);
        let answer = request.send().unwrap().error_for_status().unwrap();
        answer.headers()["waxwing-blob"].to_str().unwrap().to_owned()
    };
    let first = put(&service, "the first");

    let failed = told.recv_timeout(PATIENCE).unwrap();
    let id = failed.id();
    assert!(failed.headers["webhook-signature"].starts_with("v1,"));
    assert!(failed.headers["webhook-timestamp"].parse::<u64>().is_ok());
    assert_eq!(failed.body["type"], "blob.stored");
    assert_eq!(failed.body["data"]["blob"], first);
    assert_eq!(failed.body["data"]["blob_bytes"], 9);
    failed.answer("500 Internal Server Error");
    // The next is never answered: the server dies while it waits.
    let hanging = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(hanging.id(), id);
    service.kill();
    drop(hanging);

    let service = Service::serve(&config);
    let again = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!((again.id(), &again.body["data"]["blob"]), (id.clone(), &Value::from(first)));
    again.answer("204 No Content");
    // What was taken is not told again.
    let second = put(&service, "the second");
    let next = told.recv_timeout(PATIENCE).unwrap();
    assert_ne!(next.id(), id);
    assert_eq!(next.body["data"]["blob"], second);
    next.answer("200 OK");
    assert!(service.stop().success());
    assert!(told.try_recv().is_err());
}

#[test]
fn a_webhook_without_a_usable_secret_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "http://127.0.0.1:1/");
    std::fs::write(dir.path().join("secret"), "hunter2").unwrap();
    let refused = waxwing(dir.path(), &["serve", "--config", config.to_str().unwrap()]);
    assert!(!refused.status.success());
    assert!(refused.stderr.contains("the secret is not whsec_"), "{}", refused.stderr);
}
