//! Accounts, the key directory and grants over HTTP.

use std::time::Duration;

use axum::body::Body;
use futures_util::future::join_all;
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use waxwing_messaging::{Config, mint_edge_grant, mint_invite};
use waxwing_protocol::api::{
    AccountView, DeleteRequest, PrekeyClaim, PrekeyUpload, RegisterRequest, Registration, RenameRequest,
};
use waxwing_protocol::frames::{ErrorCode, close, frame};
use waxwing_protocol::grant::{Audience, Grant, GrantKeys, Jwks};
use waxwing_protocol::identity::{Base64, DELETE_DOMAIN, PrekeyKind, RENAME_DOMAIN};
use waxwing_protocol::{BlobId, DeviceId, Timestamp};

use crate::client::{Client, message, msg_id};
use crate::node::{Person, TestNode, open_config, slug};

#[tokio::test]
async fn registering_again_with_the_same_request_is_the_same_registration() {
    let mut node = TestNode::start().await;
    let alice = node.register("alice").await;
    let (status, first) = node.call(Method::POST, "/v1/register", None, &alice.registration()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(first["device"], 1);
    node.crash_and_restart().await;
    let (status, again) = node.call(Method::POST, "/v1/register", None, &alice.registration()).await;
    assert_eq!((status, again), (StatusCode::OK, first));
}

#[tokio::test]
async fn handles_and_accounts_are_unique() {
    let node = TestNode::start().await;
    let alice = node.register("alice").await;
    let mut thief = Person::new("mallory");
    thief.handle = "alice".into();
    let (status, body) = node.call(Method::POST, "/v1/register", None, &thief.registration()).await;
    assert_eq!((status, slug(&body)), (StatusCode::CONFLICT, "handle-taken"));
    let mut same_id = Person::new("mallory");
    same_id.account = alice.account;
    let (status, body) = node.call(Method::POST, "/v1/register", None, &same_id.registration()).await;
    assert_eq!((status, slug(&body)), (StatusCode::CONFLICT, "account-taken"));
}

#[tokio::test]
async fn a_registration_must_prove_itself_in_every_part() {
    let node = TestNode::start().await;
    let (alice, mallory) = (Person::new("alice"), Person::new("mallory"));
    let good = alice.registration();
    let second = DeviceId::new(2).unwrap();
    let mut token = good.clone();
    token.token_hash = Base64(mallory.token.hash().to_vec());
    let mut proof = good.clone();
    proof.proof.0[0] ^= 1;
    let mut list = good.clone();
    list.device_list = mallory.registration().device_list;
    let mut key = good.clone();
    key.account_key = mallory.account_key();
    let mut handle = good.clone();
    handle.handle = "mallory".parse().unwrap();
    let mut short = good.clone();
    short.token_hash = Base64(vec![1; 31]);
    let revision = alice.registration_with(2, &[DeviceId::FIRST]);
    let two = alice.registration_with(1, &[DeviceId::FIRST, second]);
    let other = alice.registration_with(1, &[second]);
    for bad in [token, proof, list, key, handle, short, revision, two, other] {
        let (status, body) = node.call(Method::POST, "/v1/register", None, &bad).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    }
    assert_eq!(node.call(Method::POST, "/v1/register", None, &good).await.0, StatusCode::CREATED);
}

#[tokio::test]
async fn registration_may_be_for_the_invited_or_closed() {
    for (registration, expected) in
        [(Registration::Invite, "registration-invite-only"), (Registration::Closed, "registration-closed")]
    {
        let node = TestNode::with(Config { registration, ..open_config() }).await;
        let request = Person::new("alice").registration();
        let (status, body) = node.call(Method::POST, "/v1/register", None, &request).await;
        assert_eq!((status, slug(&body)), (StatusCode::FORBIDDEN, expected));
    }
    // Where everybody may, a code makes no difference.
    let node = TestNode::start().await;
    let request = RegisterRequest { invite: Some("anything".into()), ..Person::new("alice").registration() };
    assert_eq!(node.call(Method::POST, "/v1/register", None, &request).await.0, StatusCode::CREATED);
}

#[tokio::test]
async fn people_are_found_by_handle_and_by_id_and_their_lists_verify() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    for name in ["bob".to_owned(), bob.account.to_string()] {
        let (status, body) = node.get(&format!("/v1/accounts/{name}"), &alice).await;
        assert_eq!(status, StatusCode::OK);
        let view: AccountView = serde_json::from_value(body).unwrap();
        assert_eq!((view.account, view.account_key), (bob.account, bob.account_key()));
        let list = view.device_list.verify(view.account, &view.account_key).unwrap();
        assert_eq!(list.device(DeviceId::FIRST).unwrap().reg_id, bob.reg_id);
    }
    for name in ["nobody", "Bob", "%2e%2e", "a%2Fb", &bob.account.to_string().to_uppercase()] {
        let (status, body) = node.get(&format!("/v1/accounts/{name}"), &alice).await;
        assert_eq!((status, slug(&body)), (StatusCode::NOT_FOUND, "account-not-found"), "{name}");
    }
}

#[tokio::test]
async fn nobody_walks_through_the_handles() {
    let node = TestNode::with(Config { look_ups_per_minute: 3, ..open_config() }).await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    for _ in 0..3 {
        assert_eq!(node.get("/v1/accounts/bob", &alice).await.0, StatusCode::OK);
    }
    let request = Request::builder()
        .uri("/v1/accounts/bob")
        .header("authorization", format!("Bearer {}", alice.token.to_text()))
        .body(Body::empty())
        .unwrap();
    let (status, headers, body) = node.request(request).await;
    assert_eq!((status, slug(&body)), (StatusCode::TOO_MANY_REQUESTS, "rate-limited"));
    assert!(headers.contains_key("retry-after"));
    assert_eq!(node.get("/v1/accounts/alice", &bob).await.0, StatusCode::OK);
}

#[tokio::test]
async fn everything_but_registering_and_public_keys_needs_a_genuine_token() {
    let node = TestNode::start().await;
    let alice = node.register("alice").await;
    let mut impostor = Person::new("alice");
    impostor.token = waxwing_protocol::DeviceToken::new(alice.account, DeviceId::FIRST, [0; 32]);
    let claim = format!("/v1/keys/{}/1/claim", alice.account);
    let doors = [
        (Method::GET, "/v1/accounts/alice"),
        (Method::GET, "/v1/keys"),
        (Method::PUT, "/v1/keys"),
        (Method::POST, &claim),
        (Method::POST, "/v1/grants"),
    ];
    for (method, path) in doors {
        for person in [None, Some(&impostor)] {
            let (status, body) = node.call(method.clone(), path, person, &json!({})).await;
            assert_eq!((status, slug(&body)), (StatusCode::UNAUTHORIZED, "unauthenticated"), "{path}");
        }
    }
    let request = Request::builder().uri("/v1/keys").body(Body::empty()).unwrap();
    let (_, headers, _) = node.request(request).await;
    assert!(headers["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
}

#[tokio::test]
async fn every_error_is_a_problem_and_bodies_are_bounded() {
    let node = TestNode::start().await;
    let raw = async |method: &str, path: &str, content_type: &str, body: Vec<u8>| {
        let request = Request::builder().method(method).uri(path).header("content-type", content_type);
        let (status, headers, body) = node.request(request.body(body.into()).unwrap()).await;
        assert_eq!(headers["content-type"], "application/problem+json", "{path} {status}");
        (status.as_u16(), slug(&body).to_owned())
    };
    let json = "application/json";
    assert_eq!(raw("POST", "/v1/register", json, b"{".to_vec()).await, (400, "body-malformed".into()));
    assert_eq!(raw("POST", "/v1/register", json, b"{\"x\":1}".to_vec()).await, (422, "body-malformed".into()));
    assert_eq!(raw("POST", "/v1/register", "text/plain", b"{}".to_vec()).await, (415, "not-json".into()));
    assert_eq!(raw("POST", "/v1/register", json, vec![b' '; 70_000]).await, (413, "body-too-large".into()));
    assert_eq!(raw("DELETE", "/v1/register", json, Vec::new()).await, (405, "method-not-allowed".into()));
    assert_eq!(raw("GET", "/v1/ws", json, Vec::new()).await, (400, "not-a-websocket".into()));
    let deep = [b"[".repeat(30_000), b"]".repeat(30_000)].concat();
    assert_eq!(raw("POST", "/v1/register", json, deep).await.0 / 100, 4);
}

#[tokio::test]
async fn browsers_may_call_from_any_page() {
    let node = TestNode::start().await;
    let request = Request::builder()
        .method("OPTIONS")
        .uri("/v1/keys")
        .header("origin", "https://chat.example")
        .header("access-control-request-method", "PUT")
        .header("access-control-request-headers", "authorization")
        .body(Body::empty())
        .unwrap();
    let (status, headers, _) = node.request(request).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["access-control-allow-origin"], "*");
    assert!(!headers.contains_key("access-control-allow-credentials"));
}

fn upload(person: &Person, keys: std::ops::Range<u8>, fallback: Option<u8>) -> PrekeyUpload {
    PrekeyUpload {
        one_time: keys.map(|n| person.prekey(n, PrekeyKind::OneTime)).collect(),
        fallback: fallback.map(|n| person.prekey(n, PrekeyKind::Fallback)),
    }
}

#[tokio::test]
async fn fifty_people_at_once_get_fifty_prekeys_and_later_ones_the_fallback() {
    let mut node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let (status, body) = node.call(Method::PUT, "/v1/keys", Some(&bob), &upload(&bob, 0..50, Some(200))).await;
    assert_eq!((status, body), (StatusCode::OK, json!({"one_time": 50, "fallback": true})));
    let path = format!("/v1/keys/{}/1/claim", bob.account);
    let nothing = json!({});
    let claims = (0..50).map(|_| node.call(Method::POST, &path, Some(&alice), &nothing));
    let mut keys: Vec<_> = join_all(claims)
        .await
        .into_iter()
        .map(|(status, body)| {
            assert_eq!(status, StatusCode::OK, "{body}");
            serde_json::from_value::<PrekeyClaim>(body).unwrap().prekey
        })
        .collect();
    keys.sort_by_key(|prekey| prekey.key.0);
    assert_eq!(keys, upload(&bob, 0..50, None).one_time);

    node.crash_and_restart().await;
    let (_, body) = node.call(Method::POST, &path, Some(&alice), &json!({})).await;
    assert_eq!(serde_json::from_value::<PrekeyClaim>(body).unwrap().prekey, bob.prekey(200, PrekeyKind::Fallback));
    // A repeated upload brings no used key back.
    let (_, body) = node.call(Method::PUT, "/v1/keys", Some(&bob), &upload(&bob, 0..51, None)).await;
    assert_eq!(body, json!({"one_time": 1, "fallback": true}));
    assert_eq!(node.get("/v1/keys", &bob).await.1, body);
}

#[tokio::test]
async fn beyond_the_limit_of_claims_the_fallback_key_serves() {
    let node = TestNode::with(Config { one_time_claims_per_hour: 2, ..open_config() }).await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    node.call(Method::PUT, "/v1/keys", Some(&bob), &upload(&bob, 0..9, Some(200))).await;
    let path = format!("/v1/keys/{}/1/claim", bob.account);
    let mut kinds = Vec::new();
    for _ in 0..3 {
        let (_, body) = node.call(Method::POST, &path, Some(&alice), &json!({})).await;
        kinds.push(serde_json::from_value::<PrekeyClaim>(body).unwrap().prekey.kind);
    }
    assert_eq!(kinds, [PrekeyKind::OneTime, PrekeyKind::OneTime, PrekeyKind::Fallback]);
    assert_eq!(node.get("/v1/keys", &bob).await.1["one_time"], 7);
}

#[tokio::test]
async fn prekeys_of_other_devices_or_kinds_are_refused() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let put = async |upload: &PrekeyUpload| node.call(Method::PUT, "/v1/keys", Some(&alice), upload).await;
    let (status, body) = put(&upload(&bob, 0..1, None)).await;
    assert_eq!((status, slug(&body)), (StatusCode::UNPROCESSABLE_ENTITY, "prekey-signature-invalid"));
    let passed_off = PrekeyUpload { one_time: vec![alice.prekey(1, PrekeyKind::Fallback)], fallback: None };
    let (status, body) = put(&passed_off).await;
    assert_eq!((status, slug(&body)), (StatusCode::UNPROCESSABLE_ENTITY, "prekeys-malformed"));
    let (status, body) = put(&upload(&alice, 0..101, None)).await;
    assert_eq!((status, slug(&body)), (StatusCode::UNPROCESSABLE_ENTITY, "prekeys-malformed"));
    assert_eq!(node.get("/v1/keys", &alice).await.1, json!({"one_time": 0, "fallback": false}));
    for device in ["2", "0", "x", "01"] {
        let path = format!("/v1/keys/{}/{device}/claim", bob.account);
        assert_eq!(node.call(Method::POST, &path, Some(&alice), &json!({})).await.0, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_connected_device_hears_that_its_prekeys_run_low() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    node.call(Method::PUT, "/v1/keys", Some(&bob), &upload(&bob, 0..5, None)).await;
    let mut connected = Client::connect(&node, &bob).await;
    let path = format!("/v1/keys/{}/1/claim", bob.account);
    node.call(Method::POST, &path, Some(&alice), &json!({})).await;
    loop {
        if let Some(frame::Body::KeysLow(low)) = connected.next().await.unwrap().body {
            break assert_eq!((low.suite, low.remaining), (1, 4));
        }
    }
}

#[tokio::test]
async fn grants_verify_with_the_published_keys_before_and_after_a_restart() {
    let mut node = TestNode::start().await;
    let alice = node.register("alice").await;
    let jwks = async |node: &TestNode| -> Jwks {
        let request = Request::builder().uri("/.well-known/jwks.json").body(Body::empty()).unwrap();
        serde_json::from_value(node.request(request).await.2).unwrap()
    };
    let published = jwks(&node).await;
    assert_eq!(published, node.messaging().jwks());
    let keys = GrantKeys::from_jwks(&published).unwrap();
    let now = || Timestamp::from(std::time::SystemTime::now());
    let mint = async |node: &TestNode, request: &Value| {
        let (status, body) = node.call(Method::POST, "/v1/grants", Some(&alice), request).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body["grant"].as_str().unwrap().to_owned()
    };
    let upload = mint(&node, &json!({"kind": "upload"})).await;
    let owner = match keys.verify(&upload, &[Audience::Upload], now()).unwrap().grant {
        Grant::Upload { owner, blob_bytes_max, quota_bytes } => {
            assert_eq!((blob_bytes_max, quota_bytes), (open_config().blob_bytes_max, open_config().quota_bytes));
            owner
        }
        other => panic!("{other:?}"),
    };
    let media = mint(&node, &json!({"kind": "media"})).await;
    assert_eq!(keys.verify(&media, &[Audience::Media], now()).unwrap().grant, Grant::Media);
    let blob = BlobId::from_bytes([5; 32]);
    let share = mint(&node, &json!({"kind": "share", "blob": blob, "lifetime_s": 60})).await;
    assert_eq!(keys.verify(&share, &[Audience::Share], now()).unwrap().grant, Grant::Share { blob });
    let edge = node.messaging().mint_edge_grant("edge-1", Duration::from_secs(60));
    assert!(keys.verify(&edge.text, &[Audience::Edge], now()).is_ok());

    node.crash_and_restart().await;
    assert_eq!(jwks(&node).await, published);
    let upload = mint(&node, &json!({"kind": "upload"})).await;
    let again = keys.verify(&upload, &[Audience::Upload], now()).unwrap().grant;
    assert!(matches!(again, Grant::Upload { owner: same, .. } if same == owner));
    let (status, _) = node.call(Method::POST, "/v1/grants", Some(&alice), &json!({"kind": "edge"})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "accounts get no edge grants");
    let nowhere = mint_edge_grant(std::path::Path::new("/nonexistent"), "edge-1", Duration::ZERO);
    assert!(nowhere.is_err());
}

#[tokio::test]
async fn a_code_lets_one_person_in_once_whatever_crashes_between() {
    let mut node = TestNode::with(Config { registration: Registration::Invite, ..open_config() }).await;
    // Made beside the running node, as an operator does.
    let invite = |lifetime_s| mint_invite(&node.data(), Duration::from_secs(lifetime_s)).unwrap().code;
    let (code, ended) = (invite(1000), invite(0));
    let ask = |handle: &str, code: &str| RegisterRequest {
        invite: Some(code.to_owned()),
        ..Person::new(handle).registration()
    };
    for wrong in [&ended, "wrong", &code.replace('-', "x")] {
        let (status, body) = node.call(Method::POST, "/v1/register", None, &ask("alice", wrong)).await;
        assert_eq!((status, slug(&body)), (StatusCode::FORBIDDEN, "invite-invalid"), "{wrong}");
    }
    let both = [ask("alice", &code), ask("bob", &code)];
    let asked = join_all(both.iter().map(|request| node.call(Method::POST, "/v1/register", None, request))).await;
    let mut statuses: Vec<_> = asked.iter().map(|(status, _)| status.as_u16()).collect();
    let first = statuses.iter().position(|status| *status == 201).unwrap();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 403], "of two who race, one gets in");

    node.crash_and_restart().await;
    let (status, _) = node.call(Method::POST, "/v1/register", None, &both[first]).await;
    assert_eq!(status, StatusCode::OK, "the same request again is the same registration");
    let (status, body) = node.call(Method::POST, "/v1/register", None, &both[1 - first]).await;
    assert_eq!((status, slug(&body)), (StatusCode::FORBIDDEN, "invite-invalid"));
}

#[tokio::test]
async fn a_handle_is_changed_by_the_account_key_alone_and_the_old_one_is_free() {
    let mut node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let rename = |handle: &str, signer: &Person| {
        let handle: waxwing_protocol::Handle = handle.parse().unwrap();
        let proof = signer.sign(RENAME_DOMAIN, &RenameRequest::proof_message(alice.account, &handle));
        RenameRequest { handle, proof }
    };
    let path = "/v1/account/handle";
    let (status, body) = node.call(Method::PUT, path, Some(&alice), &rename("alicia", &bob)).await;
    assert_eq!((status, slug(&body)), (StatusCode::UNPROCESSABLE_ENTITY, "identity-invalid"));
    let (status, body) = node.call(Method::PUT, path, Some(&alice), &rename("bob", &alice)).await;
    assert_eq!((status, slug(&body)), (StatusCode::CONFLICT, "handle-taken"));
    for _again in 0..2 {
        let (status, _) = node.call(Method::PUT, path, Some(&alice), &rename("alicia", &alice)).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
    }
    node.crash_and_restart().await;
    let (_, view) = node.get("/v1/accounts/alicia", &bob).await;
    assert_eq!(view["account"], json!(alice.account));
    assert_eq!(node.get("/v1/accounts/alice", &bob).await.0, StatusCode::NOT_FOUND);
    let mut heir = Person::new("heir");
    heir.handle = "alice".into();
    assert_eq!(node.call(Method::POST, "/v1/register", None, &heir.registration()).await.0, StatusCode::CREATED);
}

#[tokio::test]
async fn a_deleted_account_is_gone_for_everybody_at_once_and_for_good() {
    let mut node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    let mut gone = Client::connect(&node, &bob).await;
    gone.send(message(&alice, 1, b"hello")).await.unwrap();
    for n in 2..5 {
        from.send(message(&bob, n, b"canary-of-the-mailbox")).await.unwrap();
    }
    let by = |signer: &Person| DeleteRequest { proof: signer.sign(DELETE_DOMAIN, bob.account.as_bytes()) };
    let path = "/v1/account/delete";
    let (status, _) = node.call(Method::POST, path, Some(&bob), &by(&alice)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "a token alone deletes nothing");
    let (status, _) = node.call(Method::POST, path, Some(&bob), &by(&bob)).await;
    assert_eq!(status, StatusCode::NO_CONTENT);

    assert_eq!(gone.closed().await, Some(close::UNAUTHENTICATED));
    let refused = from.send(message(&bob, 9, b"still there?")).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::NotFound);
    assert_eq!(node.get("/v1/accounts/bob", &alice).await.0, StatusCode::NOT_FOUND);
    assert_eq!(node.get("/v1/keys", &bob).await.0, StatusCode::UNAUTHORIZED);
    node.crash_and_restart().await;
    assert_eq!(node.get("/v1/keys", &bob).await.0, StatusCode::UNAUTHORIZED);
    let mut heir = Person::new("heir");
    heir.handle = "bob".into();
    assert_eq!(node.call(Method::POST, "/v1/register", None, &heir.registration()).await.0, StatusCode::CREATED);
    let mut from = Client::connect(&node, &alice).await;
    let row = from.next_delivered(|row| row.msg_id == msg_id(1)).await;
    assert_eq!(row.from_account, bob.account.as_bytes()[..], "what it sent before still arrives");
}
