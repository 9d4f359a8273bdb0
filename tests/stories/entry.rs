//! How connections come in: encrypted, and by way of a load balancer.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use crate::support::{Service, WAXWING, free_address, sample_file, wait_for};

/// Writes a certificate for 127.0.0.1 and its key.
fn write_certificate(dir: &Path) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
}

fn node(dir: &Path, sections: &str) -> Service {
    let config = dir.join("waxwing.toml");
    let (data, admin) = (dir.join("data"), dir.join("admin"));
    let free = free_address();
    fs::write(&admin, &free).unwrap();
    let text = format!(
        "listen = \"127.0.0.1:0\"\nadmin_listen = \"{free}\"\ndata = {data:?}\n[messaging]\nregistration = \
         \"open\"\n{sections}"
    );
    fs::write(&config, text).unwrap();
    Service::serve(&config)
}

/// Registration, an upload in parts, a message over a socket, a download through the edge of the same process.
#[test]
fn everything_works_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_certificate(dir);
    let files = format!("[tls]\ncert_file = {:?}\nkey_file = {:?}\n", dir.join("cert.pem"), dir.join("key.pem"));
    let service = node(dir, &files);
    assert!(service.url.starts_with("https://127.0.0.1:"), "{}", service.url);
    let waxwing = |args: &[&str]| {
        let command =
            Command::new(WAXWING).current_dir(dir).env("SSL_CERT_FILE", dir.join("cert.pem")).args(args).output();
        let output = command.unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    for handle in ["alice", "bob"] {
        waxwing(&["register", "--handle", handle, "--home", handle, "--server", &service.url]);
    }
    let photo = sample_file(dir, "photo.jpg", 3_000_000);
    waxwing(&["send", "photo.jpg", "--to", "bob", "--home", "alice"]);
    waxwing(&["watch", "--once", "--save", "inbox", "--home", "bob"]);
    assert_eq!(fs::read(dir.join("inbox/photo.jpg")).unwrap(), fs::read(photo).unwrap());
    // The same by HTTP/1.1 and HTTP/2 of a client that is not ours.
    for version in ["--http1.1", "--http2"] {
        let url = format!("{}/v1/info", service.url);
        let cert = dir.join("cert.pem");
        let Ok(answer) =
            Command::new("curl").args(["-sS", "--noproxy", "*", version, "--cacert"]).arg(cert).arg(url).output()
        else {
            eprintln!("curl is not installed: not tried");
            return;
        };
        let said = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert!(said.contains(&format!("{}/v1/blobs", service.url)), "{said} {answer:?}");
    }
}

#[test]
fn a_node_behind_a_load_balancer_takes_its_word_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = node(dir, "[listener]\nproxy_protocol = true\nproxy_networks = [\"127.0.0.0/8\"]\n");
    let ask = |header: &str| {
        let mut stream = TcpStream::connect(service.address()).unwrap();
        stream
            .write_all(format!("{header}GET /v1/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    assert!(ask("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n").starts_with("HTTP/1.1 200"));
    assert_eq!(ask(""), "");
    assert_eq!(ask("PROXY TCP4 somebody 198.51.100.1 56324 443\r\n"), "");
    let admin = fs::read_to_string(dir.join("admin")).unwrap();
    wait_for("both to be counted", || {
        let page = reqwest::blocking::get(format!("http://{admin}/metrics")).unwrap().text().unwrap();
        page.contains("waxwing_connections_refused_total{why=\"proxy-header\"} 2").then_some(())
    });
}

#[test]
fn a_certificate_that_cannot_be_used_stops_the_start_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("waxwing.toml");
    let text = "listen = \"127.0.0.1:0\"\ndata = \"data\"\n[tls]\ncert_file = \"absent.pem\"\nkey_file = \"key.pem\"\n";
    fs::write(&config, text).unwrap();
    let done = crate::support::waxwing(dir.path(), &["serve", "--config", "waxwing.toml"]);
    done.fails_saying(&["TLS", "absent.pem"]);
}
