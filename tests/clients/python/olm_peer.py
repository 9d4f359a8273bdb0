"""A device whose Olm is the Python vodozemac; does what JSON lines on stdin say, and answers each with one on stdout."""

import base64
import json
import sys

import vodozemac as v


def to_text(data):
    return base64.b64encode(data).decode()


def from_text(text):
    return base64.b64decode(text)


account, session = v.Account(), None
account.generate_one_time_keys(1)
for line in sys.stdin:
    asked = json.loads(line)
    key = lambda name: v.Curve25519PublicKey.from_bytes(from_text(asked[name]))
    match asked["do"]:
        case "introduce":
            one_time = next(iter(account.one_time_keys.values())).to_bytes()
            told = {
                "curve25519": to_text(account.curve25519_key.to_bytes()),
                "ed25519": account.ed25519_key.to_base64(),
                "one_time": to_text(one_time),
            }
        case "sign":
            told = {"signature": account.sign(from_text(asked["message"])).to_base64()}
        case "start":
            session = account.create_outbound_session(key("identity"), key("one_time"))
            told = {}
        case "accept":
            message = v.AnyOlmMessage.from_parts(0, from_text(asked["body"])).to_pre_key()
            session, text = account.create_inbound_session(key("identity"), message)
            told = {"text": to_text(text)}
        case "encrypt":
            kind, body = session.encrypt(from_text(asked["text"])).to_parts()
            told = {"kind": kind, "body": to_text(body)}
        case "decrypt":
            text = session.decrypt(v.AnyOlmMessage.from_parts(asked["kind"], from_text(asked["body"])))
            told = {"text": to_text(text)}
    print(json.dumps(told), flush=True)
