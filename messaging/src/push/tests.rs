//! Providers on the wire: what is asked, how often, and where never.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use http::{HeaderMap, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use waxwing_protocol::Timestamp;
use waxwing_protocol::api::{PushTarget, Subscription};

use super::config::{FcmConfig, PushConfig, WebConfig};
use super::gates::Health;
use super::net::{Ask, Net, NetError, Place, Resolver, client_config};
use super::provider::{Provider, answer, tls};
use super::providers::{Providers, TargetRefused};
use super::schedule::Loudness;
use super::verdict::{Fate, Verdict};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// Names as a test wants them; every look-up is counted.
#[derive(Default)]
struct Names {
    addresses: Mutex<HashMap<String, Vec<SocketAddr>>>,
    looked_up: AtomicUsize,
}

impl Resolver for Names {
    fn resolve(&self, host: &str, _: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        self.looked_up.fetch_add(1, Ordering::SeqCst);
        let addresses = self.addresses.lock().unwrap().get(host).cloned();
        Box::pin(async move { addresses.ok_or_else(|| io::Error::other("no such name")) })
    }
}

fn subscription(endpoint: &str) -> Subscription {
    Subscription {
        endpoint: endpoint.into(),
        p256dh: "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4".into(),
        auth: "BTBZMqHH6r4Tts7J_aSIgg".into(),
    }
}

async fn send(providers: &Providers, target: &PushTarget) -> Result<Verdict, TargetRefused> {
    let checked = providers.checked(target)?;
    Ok(providers.send(&checked, Loudness::Visible, false, NOW).await)
}

fn fcm_of(provider: &Provider) -> PushConfig {
    let fcm = FcmConfig { service_account_file: provider.service_account(), url: provider.url() };
    let authorities_file = Some(provider.authorities_file());
    PushConfig { fcm: Some(fcm), authorities_file, ..PushConfig::default() }
}

fn web_of(authorities_file: Option<std::path::PathBuf>, hosts: &[&str], inside: &[String]) -> PushConfig {
    let web = WebConfig {
        subject: "mailto:ops@example.com".into(),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        hosts_inside: inside.to_vec(),
        ..WebConfig::default()
    };
    PushConfig { web: Some(web), authorities_file, ..PushConfig::default() }
}

const TOKEN: &str = r#"{"access_token":"ya29.first","expires_in":3599,"token_type":"Bearer"}"#;

#[tokio::test]
async fn a_thousand_wakes_at_once_fetch_one_token_over_one_connection() {
    let provider = Provider::start().await;
    provider.answer(|asked| if asked.path == "/token" { answer(200, TOKEN) } else { answer(200, "{}") });
    let dir = tempfile::tempdir().unwrap();
    let providers = Providers::open(&fcm_of(&provider), dir.path()).unwrap();
    let target = PushTarget::Fcm { token: "device".into() };
    let verdicts = join_all((0..1000).map(|_| send(&providers, &target))).await;
    assert!(verdicts.iter().all(|verdict| *verdict == Ok(Verdict::accepted())));
    let asked = provider.all();
    let tokens: Vec<_> = asked.iter().filter(|asked| asked.path == "/token").collect();
    assert_eq!(tokens.len(), 1);
    let form = String::from_utf8_lossy(&tokens[0].body).into_owned();
    assert!(
        form.starts_with("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=ey"),
        "{form}"
    );
    assert_eq!(asked.len(), 1001);
    let wake = asked.iter().find(|asked| asked.path == "/v1/projects/waxwing-test/messages:send").unwrap();
    assert_eq!(
        (wake.version, &wake.headers["authorization"]),
        (Version::HTTP_2, &"Bearer ya29.first".parse().unwrap())
    );
    assert_eq!(provider.connections(), 1);
}

/// Google takes a token back before its time; whoever still shows it fetches another, once.
#[tokio::test]
async fn a_token_that_is_not_taken_any_more_is_fetched_anew_and_the_wake_goes_out() {
    let provider = Provider::start().await;
    let given = AtomicUsize::new(0);
    provider.answer(move |asked| {
        if asked.path == "/token" {
            let number = given.fetch_add(1, Ordering::SeqCst);
            return answer(200, &format!(r#"{{"access_token":"t{number}","expires_in":3599}}"#));
        }
        match asked.headers["authorization"].to_str().unwrap() {
            "Bearer t0" => answer(401, r#"{"error":{"status":"UNAUTHENTICATED"}}"#),
            _ => answer(200, "{}"),
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let providers = Providers::open(&fcm_of(&provider), dir.path()).unwrap();
    let target = PushTarget::Fcm { token: "device".into() };
    let verdicts = join_all((0..100).map(|_| send(&providers, &target))).await;
    assert!(verdicts.iter().all(|verdict| *verdict == Ok(Verdict::accepted())));
    assert_eq!(provider.all().iter().filter(|asked| asked.path == "/token").count(), 2);
}

#[tokio::test]
async fn a_token_that_cannot_be_fetched_fails_once_for_all_who_wait_and_is_our_mistake_or_theirs() {
    let provider = Provider::start().await;
    let dir = tempfile::tempdir().unwrap();
    let target = PushTarget::Fcm { token: "device".into() };
    for (status, body, health) in [
        (400, r#"{"error":"invalid_grant"}"#, Health::Misconfigured),
        (502, "<html>", Health::Ill),
        (200, "not json", Health::Ill),
    ] {
        let before = provider.all().len();
        provider.answer(move |_| answer(status, body));
        let providers = Providers::open(&fcm_of(&provider), dir.path()).unwrap();
        let verdicts = join_all((0..50).map(|_| send(&providers, &target))).await;
        assert!(verdicts.iter().all(|verdict| verdict.unwrap().health == health), "{status}: {:?}", verdicts[0]);
        assert_eq!(provider.all().len(), before + 1);
    }
}

/// A service account is replaced while the node runs.
#[tokio::test]
async fn another_service_account_is_used_from_the_next_wake_on() {
    let provider = Provider::start().await;
    provider.answer(|asked| if asked.path == "/token" { answer(200, TOKEN) } else { answer(200, "{}") });
    let dir = tempfile::tempdir().unwrap();
    let config = fcm_of(&provider);
    let providers = Providers::open(&config, dir.path()).unwrap();
    let target = PushTarget::Fcm { token: "device".into() };
    send(&providers, &target).await.unwrap();
    let file = &config.fcm.as_ref().unwrap().service_account_file;
    let text = std::fs::read_to_string(file).unwrap().replace("waxwing-test", "another-project");
    let new = provider.file("new.json", &text);
    std::fs::rename(new, file).unwrap();
    send(&providers, &target).await.unwrap();
    let paths: Vec<_> = provider.all().into_iter().map(|asked| asked.path).collect();
    let sent = |project: &str| format!("/v1/projects/{project}/messages:send");
    assert_eq!(paths, ["/token".to_owned(), sent("waxwing-test"), "/token".to_owned(), sent("another-project")]);
}

#[tokio::test]
async fn a_provider_that_speaks_http_1_alone_is_asked_that_way() {
    let provider = Provider::speaking(&["http/1.1"]).await;
    let dir = tempfile::tempdir().unwrap();
    let inside = format!("localhost:{}", provider.address.port());
    let config = web_of(Some(provider.authorities_file()), &[], std::slice::from_ref(&inside));
    let providers = Providers::open(&config, dir.path()).unwrap();
    let target = PushTarget::UnifiedPush(subscription(&format!("https://{inside}/topic?up=1")));
    for _ in 0..2 {
        assert_eq!(send(&providers, &target).await, Ok(Verdict::accepted()));
    }
    let asked = provider.all();
    assert_eq!((asked[0].version, asked[0].path.as_str()), (Version::HTTP_11, "/topic?up=1"));
    assert_eq!(asked[1].headers["host"], inside.as_str());
    assert_eq!(asked[0].headers["ttl"], "604800");
    assert_eq!(asked[0].headers["urgency"], "high");
    assert_eq!(asked[0].headers["content-encoding"], "aes128gcm");
    assert!(asked[0].headers["authorization"].to_str().unwrap().starts_with("vapid t="));
}

/// A listener that should never hear of anybody.
async fn silent() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, heard) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counter = heard.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    (address, heard)
}

/// Every host allowed, and every trick played: no connection comes about.
#[tokio::test]
async fn sixty_hostile_endpoints_make_no_connection() {
    let (inside, heard) = silent().await;
    let port = inside.port();
    let names = Arc::new(Names::default());
    let dir = tempfile::tempdir().unwrap();
    let providers = Providers::open_with(&web_of(None, &["*"], &[]), dir.path(), names.clone()).unwrap();

    // Addresses, in every notation that some parser takes, with and without the port.
    let literals = [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0x7f.1",
        "017700000001",
        "0177.0.0.1",
        "0177.1",
        "127.0.0.1.",
        "１２７.０.０.１",
        "127。0。0。1",
        "0",
        "0.0.0.0",
        "0x0",
        "10.0.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "172.16.0.1",
        "192.168.0.1",
        "3232235521",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:7f00:0001]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fc00::1]",
        "[fe80::1]",
        "[ff02::1]",
    ];
    let mut hostile: Vec<String> = literals.iter().map(|host| format!("https://{host}/x")).collect();
    hostile.extend(["127.0.0.1", "[::1]", "localhost", "push.example"].map(|host| format!("https://{host}:{port}/x")));
    // Other schemes, and users in front of the host.
    hostile.extend(["http", "ftp", "file", "gopher", "ws"].map(|scheme| format!("{scheme}://127.0.0.1/x")));
    hostile.push(format!("https://push.example@127.0.0.1:{port}/x"));
    hostile.push("https://user:secret@localhost/x".into());
    // Names that lead inside: alone, behind a public address, before one.
    let public = SocketAddr::new("1.1.1.1".parse().unwrap(), port);
    let lead_to = [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.31.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.100.1.1",
        "198.18.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "fd00::1",
        "fe80::1",
    ];
    for (n, ip) in lead_to.into_iter().enumerate() {
        let name = format!("host-{n}.example");
        let inside = SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port);
        let addresses = match n % 3 {
            0 => vec![inside],
            1 => vec![public, inside],
            _ => vec![inside, public],
        };
        names.addresses.lock().unwrap().insert(name.clone(), addresses);
        hostile.push(format!("https://{name}/x"));
    }
    names.addresses.lock().unwrap().insert("localhost".into(), vec![inside]);
    hostile.push("https://localhost/x".into());
    assert!(hostile.len() >= 60, "{}", hostile.len());
    for endpoint in &hostile {
        for target in [PushTarget::WebPush, PushTarget::UnifiedPush] {
            match send(&providers, &target(subscription(endpoint))).await {
                Err(_) => {}
                Ok(verdict) => assert_eq!((verdict.fate, verdict.reason), (Fate::Refused, "not-public"), "{endpoint}"),
            }
        }
    }
    assert_eq!(heard.load(Ordering::SeqCst), 0);
}

/// The second look-up would say another address than the one that was checked. There is none.
#[tokio::test]
async fn a_name_is_looked_up_once_for_a_connection() {
    let (inside, heard) = silent().await;
    let names = Arc::new(Names::default());
    let net = Net::new(client_config(None).unwrap(), names.clone());
    names.addresses.lock().unwrap().insert("rebinding.example".into(), vec![inside]);
    let place = Place { host: "rebinding.example".into(), port: 443, trusted: false };
    let ask = Ask { path: "/".into(), headers: HeaderMap::new(), body: Bytes::new() };
    assert!(matches!(net.post(&place, ask.clone()).await, Err(NetError::NotPublic)));
    assert_eq!(names.looked_up.load(Ordering::SeqCst), 1);
    // And each connection asks anew: what was public yesterday is not for ever.
    assert!(matches!(net.post(&place, ask).await, Err(NetError::NotPublic)));
    assert_eq!((names.looked_up.load(Ordering::SeqCst), heard.load(Ordering::SeqCst)), (2, 0));
}

#[tokio::test]
async fn a_redirect_leads_nowhere() {
    let (inside, heard) = silent().await;
    let provider = Provider::start().await;
    provider.answer(move |_| {
        let mut redirect = answer(307, "");
        redirect.headers_mut().insert("location", format!("https://{inside}/").parse().unwrap());
        redirect
    });
    let dir = tempfile::tempdir().unwrap();
    let host = format!("localhost:{}", provider.address.port());
    let config = web_of(Some(provider.authorities_file()), &[], std::slice::from_ref(&host));
    let providers = Providers::open(&config, dir.path()).unwrap();
    let verdict = send(&providers, &PushTarget::WebPush(subscription(&format!("https://{host}/x")))).await.unwrap();
    assert_eq!((verdict.fate, verdict.reason), (Fate::Later(None), "redirect"));
    assert_eq!((provider.all().len(), heard.load(Ordering::SeqCst)), (1, 0));
}

/// An answer of gigabytes costs four kilobytes of it.
#[tokio::test]
async fn of_an_answer_a_few_kilobytes_are_read() {
    let provider = Provider::start().await;
    provider.answer(|_| answer(503, &"x".repeat(1 << 20)));
    let net = Net::new(client_config(Some(&provider.authorities_file())).unwrap(), Arc::new(Names::default()));
    let place = Place { host: "localhost".into(), port: provider.address.port(), trusted: true };
    let ask = Ask { path: "/".into(), headers: HeaderMap::new(), body: Bytes::new() };
    assert!(matches!(net.post(&place, ask.clone()).await, Err(NetError::Unresolved)), "no such name here");
    let names = Names::default();
    names.addresses.lock().unwrap().insert("localhost".into(), vec![provider.address]);
    let net = Net::new(client_config(Some(&provider.authorities_file())).unwrap(), Arc::new(names));
    assert_eq!(net.post(&place, ask).await.unwrap().body.len(), 4096);
}

/// HTTP/2 by hand: answers the first `answered` requests of a connection with 200, then says GOAWAY to the rest and
/// closes when the client does. Later connections answer everything.
async fn going_away(answered: u32) -> (SocketAddr, String, Arc<AtomicUsize>) {
    let (acceptor, certificate) = tls(&["h2"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, taken) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counter = taken.clone();
    tokio::spawn(async move {
        let mut limit = answered;
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, taken) = (acceptor.clone(), counter.clone());
            tokio::spawn(async move {
                // A client that gives up ends its connection.
                let _ = by_hand(acceptor, stream, limit, &taken).await;
            });
            limit = u32::MAX;
        }
    });
    (address, certificate, taken)
}

async fn by_hand(
    acceptor: tokio_rustls::TlsAcceptor,
    stream: tokio::net::TcpStream,
    limit: u32,
    taken: &AtomicUsize,
) -> io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    // SETTINGS: a hundred streams at once.
    stream.write_all(&frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])).await?;
    let (mut here, mut last, mut gone) = (0, 0, false);
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut payload).await?;
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let ends = matches!(kind, 0 | 1) && flags & 1 != 0;
        match kind {
            4 if flags & 1 == 0 => stream.write_all(&frame(4, 1, 0, &[])).await?,
            6 if flags & 1 == 0 => stream.write_all(&frame(6, 1, 0, &payload)).await?,
            _ if ends && here < limit => {
                (here, last) = (here + 1, id);
                taken.fetch_add(1, Ordering::SeqCst);
                // HEADERS that say 200 and end the stream: the one byte is in HPACK's static table.
                stream.write_all(&frame(1, 5, id, &[0x88])).await?;
            }
            // Requests that came after the last one looked at.
            _ if ends && !gone => {
                gone = true;
                let reason = br#"{"reason":"Shutdown"}"#;
                let goaway = [&last.to_be_bytes()[..], &0_u32.to_be_bytes(), reason].concat();
                stream.write_all(&frame(7, 0, 0, &goaway)).await?;
            }
            _ => {}
        }
        stream.flush().await?;
    }
}

/// Apple shuts a server down while a hundred wakes are on their way to it: those it has looked at are done, the others go
/// out again, and none is lost or doubled.
#[tokio::test]
async fn goaway_amid_flight_loses_and_doubles_no_wake() {
    let (address, certificate, taken) = going_away(37).await;
    let dir = tempfile::tempdir().unwrap();
    let authority = dir.path().join("authority.pem");
    std::fs::write(&authority, certificate).unwrap();
    let names = Names::default();
    names.addresses.lock().unwrap().insert("localhost".into(), vec![address]);
    let net = Net::new(client_config(Some(&authority)).unwrap(), Arc::new(names));
    let place = Place { host: "localhost".into(), port: address.port(), trusted: true };
    let ask =
        |n: usize| Ask { path: format!("/3/device/{n}"), headers: HeaderMap::new(), body: Bytes::from_static(b"{}") };
    let answers =
        tokio::time::timeout(Duration::from_secs(60), join_all((0..100).map(|n| net.post(&place, ask(n))))).await;
    for answer in answers.expect("every wake is answered") {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!(taken.load(Ordering::SeqCst), 100);
}
