"""Opens what a push service was given, and verifies who sent it: http_ece and py_vapid, the two parts of pywebpush.

Usage: web_push.py JSON
"""

import base64
import json
import sys

import http_ece
import py_vapid
import pywebpush
from cryptography.hazmat.primitives.asymmetric import ec


def decoded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


given = json.loads(sys.argv[1])
private = ec.derive_private_key(int.from_bytes(decoded(given["private"]), "big"), ec.SECP256R1())
plaintext = http_ece.decrypt(
    decoded(given["body"]), private_key=private, auth_secret=decoded(given["auth"]), version="aes128gcm"
)
token, key = given["authorization"].removeprefix("vapid t=").split(", k=")

# The library takes our subscription and key as they are.
subscription = {"endpoint": given["endpoint"], "keys": {"p256dh": given["p256dh"], "auth": given["auth"]}}
sealed = pywebpush.WebPusher(subscription).encode(b"wake", content_encoding="aes128gcm")
print(
    json.dumps(
        {
            "plaintext": plaintext.decode(),
            "verified": py_vapid.Vapid01.verify(key, "vapid " + token),
            "sealed": len(sealed["body"]) > 0,
        }
    )
)
