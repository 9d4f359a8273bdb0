//! Other implementations of Olm: the Python vodozemac, and libolm as npm has it.
//!
//! What we call an Olm session must be one. Each of the two begins a session with our device and is begun one with by it;
//! then they write in turns, some messages late, and everything opens on both sides.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use data_encoding::{BASE64, BASE64_NOPAD};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use waxwing_protocol::DeviceId;
use waxwing_protocol::identity::{
    Base64, Device, PREKEY_DOMAIN, PrekeyKind, PublicKey, SignedPrekey, Suite, signed_bytes,
};
use waxwing_seal::device::DeviceKeys;
use waxwing_seal::session::Sessions;

use super::tools::{installed, on_path, scripts, trial};

/// How messages begin on our wire: Olm, version 1.
const SUITE: u8 = 1;

/// Turns of a conversation.
const TURNS: usize = 20;

pub fn trials() -> Vec<Trial> {
    let python = installed().join("venv/bin/python");
    let libolm = on_path("node").is_some() && installed().join("node_modules/@matrix-org/olm").is_dir();
    vec![
        trial("the_python_vodozemac_and_we_open_each_others_messages", "vodozemac", python.is_file(), || {
            let python = installed().join("venv/bin/python");
            converses(|| Peer::start(Command::new(&python).arg(scripts("python").join("olm_peer.py"))));
        }),
        trial("libolm_and_we_open_each_others_messages", "@matrix-org/olm", libolm, || {
            let packages = installed().join("node_modules");
            converses(|| {
                let script = scripts("web").join("olm_peer.cjs");
                Peer::start(Command::new("node").env("NODE_PATH", &packages).arg(script))
            });
        }),
    ]
}

/// Another implementation's device, in a process of its own.
struct Peer {
    child: Child,
    asks: ChildStdin,
    tells: BufReader<ChildStdout>,
}

impl Peer {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the peer starts");
        let (asks, tells) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, asks, tells }
    }

    fn ask(&mut self, asked: &Value) -> Value {
        writeln!(self.asks, "{asked}").unwrap();
        let mut line = String::new();
        self.tells.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{} got no answer", asked["do"]))
    }

    fn key(told: &Value) -> PublicKey {
        PublicKey(bytes(told).try_into().unwrap())
    }

    /// Encrypts as our wire has it.
    fn encrypt(&mut self, text: &str) -> Vec<u8> {
        let told = self.ask(&json!({"do": "encrypt", "text": BASE64.encode(text.as_bytes())}));
        let kind = u8::try_from(told["kind"].as_u64().unwrap()).unwrap();
        [&[SUITE, kind], &bytes(&told["body"])[..]].concat()
    }

    fn decrypt(&mut self, body: &[u8]) -> String {
        assert_eq!(body[0], SUITE);
        let told = self.ask(&json!({"do": "decrypt", "kind": body[1], "body": BASE64.encode(&body[2..])}));
        String::from_utf8(bytes(&told["text"])).unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes as JSON has them, padded or not.
fn bytes(text: &Value) -> Vec<u8> {
    BASE64_NOPAD.decode(text.as_str().unwrap().trim_end_matches('=').as_bytes()).unwrap()
}

fn converses(peer: impl Fn() -> Peer) {
    for ours_begins in [true, false] {
        let mut peer = peer();
        let told = peer.ask(&json!({"do": "introduce"}));
        let (curve25519, ed25519) = (Peer::key(&told["curve25519"]), Peer::key(&told["ed25519"]));
        let device = Device { id: DeviceId::FIRST, reg_id: 7, curve25519, ed25519 };
        let mut keys = DeviceKeys::generate(DeviceId::FIRST);
        let mut sessions = Sessions::with(&device);
        let identity = BASE64.encode(&keys.device().curve25519.0);

        if ours_begins {
            let key = Peer::key(&told["one_time"]);
            let (suite, kind) = (Suite::OlmV1, PrekeyKind::OneTime);
            let message = signed_bytes(PREKEY_DOMAIN, &SignedPrekey::message(suite, kind, &key));
            let told = peer.ask(&json!({"do": "sign", "message": BASE64.encode(&message)}));
            let prekey = SignedPrekey { suite, kind, key, signature: Base64(bytes(&told["signature"])) };
            sessions.start(&keys, &device, &prekey).expect("the signature of another implementation is good");
            let first = sessions.encrypt(b"hello").unwrap();
            let told = peer.ask(&json!({"do": "accept", "identity": identity, "body": BASE64.encode(&first[2..])}));
            assert_eq!(bytes(&told["text"]), b"hello");
        } else {
            let one_time = keys.one_time_prekeys(1).remove(0);
            peer.ask(&json!({"do": "start", "identity": identity, "one_time": BASE64.encode(&one_time.key.0)}));
            let first = peer.encrypt("hello");
            let opened = sessions.decrypt(&mut keys, &first).unwrap();
            assert_eq!((&opened.plaintext[..], opened.keys_changed), (&b"hello"[..], true));
        }

        let mut late = Vec::new();
        for turn in 0..TURNS {
            let theirs = [format!("theirs {turn}"), format!("theirs {turn}, late")];
            let [now, later] = theirs.each_ref().map(|text| peer.encrypt(text));
            assert_eq!(sessions.decrypt(&mut keys, &now).unwrap().plaintext[..], *theirs[0].as_bytes());
            late.push((later, theirs[1].clone()));
            // Out of order: the second is opened first.
            let ours = [format!("ours {turn}"), format!("ours {turn}, late")];
            let [first, second] = ours.each_ref().map(|text| sessions.encrypt(text.as_bytes()).unwrap());
            assert_eq!([peer.decrypt(&second), peer.decrypt(&first)], [ours[1].clone(), ours[0].clone()]);
            // What is stored and read again goes on.
            sessions = Sessions::from_bytes(&sessions.into_bytes()).unwrap();
        }
        // A session keeps the keys of messages that were skipped, for the last few chains.
        for (body, text) in late.iter().rev().take(3) {
            assert_eq!(sessions.decrypt(&mut keys, body).unwrap().plaintext[..], *text.as_bytes());
        }
    }
}
