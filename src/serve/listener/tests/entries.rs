//! What connections bring before requests: PROXY headers and TLS.

use std::path::Path;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;

use super::*;

fn behind_proxies(networks: &[&str]) -> Entry {
    Entry { proxies: networks.iter().map(|network| network.parse().unwrap()).collect(), tls: None }
}

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x01\xdc\x04\x01\xbb";
const V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

#[tokio::test]
async fn a_load_balancer_names_the_client() {
    let listening = start(behind_proxies(&["10.0.0.0/8", "127.0.0.1"])).await;
    for header in [&b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n"[..], V2] {
        let mut stream = listening.connect().await;
        stream.write_all(header).await.unwrap();
        let answer = ask(&mut stream).await;
        assert!(answer.ends_with("192.0.2.1:56324 is here"), "{answer}");
        // Byte by byte, as a bad network brings it, and the request with the last of them.
        let mut stream = listening.connect().await;
        let (first, last) = header.split_at(header.len() - 1);
        for byte in first {
            stream.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        stream.write_all(&[last, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"].concat()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("192.0.2.1:56324 is here"), "{answer}");
    }
    for header in [&b"PROXY UNKNOWN\r\n"[..], V2_LOCAL] {
        let mut stream = listening.connect().await;
        let own = stream.local_addr().unwrap();
        stream.write_all(header).await.unwrap();
        assert!(ask(&mut stream).await.ends_with(&format!("{own} is here")));
    }
}

#[tokio::test]
async fn from_a_load_balancer_nothing_but_a_header_is_taken() {
    let listening = start(behind_proxies(&["127.0.0.0/8"])).await;
    for said in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"PROXY TCP4 nobody 198.51.100.1 56324 443\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PROXY TCP4 192.0.2.1",
        &V2[..20],
        b"",
    ] {
        let mut stream = listening.connect().await;
        stream.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        // An end or a reset, and within the time that a head may take: there is one place only.
        let _ = stream.read_to_end(&mut answer).await;
        assert_eq!(answer, b"", "after {said:?}");
    }
    assert_eq!(listening.handled.load(Relaxed), 0);
}

/// Anybody could say that they are anybody.
#[tokio::test]
async fn from_elsewhere_a_header_is_not_believed() {
    let listening = start(behind_proxies(&["10.0.0.0/8"])).await;
    let mut stream = listening.connect().await;
    let own = stream.local_addr().unwrap();
    assert!(ask(&mut stream).await.ends_with(&format!("{own} is here")));
    let mut stream = listening.connect().await;
    stream.write_all(b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n").await.unwrap();
    let answer = ask(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

/// A certificate for `localhost` in files, and clients that trust it.
struct Certified {
    dir: TempDir,
    tls: Tls,
}

fn write_certificate(dir: &Path) -> RootCertStore {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    roots
}

fn certified() -> (Certified, RootCertStore) {
    let dir = TempDir::new().unwrap();
    let roots = write_certificate(dir.path());
    let tls = Tls::from_files(&dir.path().join("cert.pem"), &dir.path().join("key.pem")).unwrap();
    (Certified { dir, tls }, roots)
}

fn entry(certified: &Certified) -> Entry {
    Entry { tls: Some(certified.tls.clone()), ..Entry::default() }
}

async fn handshake(
    stream: TcpStream,
    roots: &RootCertStore,
    alpn: &[&[u8]],
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots.clone()).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// With time enough for a handshake on a busy machine.
fn one_at_a_time() -> Limits {
    Limits { connections_max: 1, head_timeout: Duration::from_millis(500), ..Limits::default() }
}

#[tokio::test]
async fn requests_come_over_tls_in_the_version_agreed_on() {
    let (certified, roots) = certified();
    let entry = Entry { proxies: behind_proxies(&["127.0.0.1"]).proxies, ..entry(&certified) };
    let listening = start_with(entry, one_at_a_time()).await;
    // Behind a load balancer, whose header comes before the handshake.
    for alpn in [&[][..], &[&b"http/1.1"[..]]] {
        let mut stream = listening.connect().await;
        stream.write_all(V2).await.unwrap();
        let mut stream = handshake(stream, &roots, alpn).await.unwrap();
        let answer = ask(&mut stream).await;
        assert!(answer.ends_with("192.0.2.1:56324 is here"), "{answer}");
    }
    let mut stream = listening.connect().await;
    stream.write_all(V2).await.unwrap();
    let stream = handshake(stream, &roots, &[b"h2", b"http/1.1"]).await.unwrap();
    let client = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = client.unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://localhost/").body(Empty::<Bytes>::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.version(), Version::HTTP_2);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "192.0.2.1:56324 is here");
}

/// A handshake that stops, a plain request, a client that trusts another: none keeps the only place.
#[tokio::test]
async fn handshakes_that_fail_or_stop_give_their_place_back() {
    let (certified, roots) = certified();
    let listening = start_with(entry(&certified), one_at_a_time()).await;
    for said in [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stopped = listening.connect().await;
        stopped.write_all(said).await.unwrap();
        let _ = stopped.read_to_end(&mut Vec::new()).await;
        let mut stream = handshake(listening.connect().await, &roots, &[]).await.unwrap();
        assert!(ask(&mut stream).await.ends_with("is here"));
    }
    assert!(handshake(listening.connect().await, &RootCertStore::empty(), &[]).await.is_err());
    // HTTP/2 was agreed on, and then nothing comes, or half a preface.
    for said in [&b""[..], b"PRI * HTTP/2.0\r\n"] {
        let mut silent = handshake(listening.connect().await, &roots, &[b"h2"]).await.unwrap();
        silent.write_all(said).await.unwrap();
        let _ = silent.read_to_end(&mut Vec::new()).await;
    }
    let mut stream = handshake(listening.connect().await, &roots, &[]).await.unwrap();
    assert!(ask(&mut stream).await.ends_with("is here"));
}

/// A renewal puts other files in place of the old ones; connections go on, and new ones see the new certificate.
#[tokio::test]
async fn a_renewed_certificate_is_taken_up_without_a_restart() {
    let (certified, old_roots) = certified();
    let limits = Limits { connections_max: 3, ..Limits::default() };
    let listening = start_with(entry(&certified), limits).await;
    tokio::spawn(certified.tls.clone().follow_files(Duration::from_millis(10)));
    tokio::task::yield_now().await;
    let mut open = handshake(listening.connect().await, &old_roots, &[]).await.unwrap();

    let path = |name: &str| certified.dir.path().join(name);
    std::fs::write(path("cert.pem"), "half of a renewal").unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(handshake(listening.connect().await, &old_roots, &[]).await.expect("the old one stays in use"));

    let new_roots = write_certificate(certified.dir.path());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(handshake(listening.connect().await, &old_roots, &[]).await.is_err());
    let mut stream = handshake(listening.connect().await, &new_roots, &[]).await.unwrap();
    assert!(ask(&mut stream).await.ends_with("is here"));
    assert!(ask(&mut open).await.ends_with("is here"), "what was open goes on");
}

#[test]
fn files_that_are_no_pair_are_refused_with_their_names() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_certificate(dir.path());
    std::fs::rename(path("cert.pem"), path("other.pem")).unwrap();
    write_certificate(dir.path());
    std::fs::write(path("empty.pem"), "").unwrap();
    for (cert, key, said) in [
        ("other.pem", "key.pem", "cannot be used together"),
        ("missing.pem", "key.pem", "missing.pem"),
        ("empty.pem", "key.pem", "no certificate is in"),
        ("cert.pem", "empty.pem", "no private key is in"),
        ("cert.pem", "cert.pem", "no private key is in"),
    ] {
        let error = Tls::from_files(&path(cert), &path(key)).err().unwrap();
        assert!(format!("{error:#}").contains(said), "{error:#}");
    }
    assert!(Tls::from_files(&path("cert.pem"), &path("key.pem")).is_ok());
}
