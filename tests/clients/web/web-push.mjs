// The device's end of Web Push, by the libraries that others use.
// Usage: node web-push.mjs keys — makes a subscription's keys and tells them.
//        node web-push.mjs open JSON — opens what came for them, verifies who sent it, and tells both; with what web-push
//        itself would have sent.
import { createECDH, createPublicKey, randomBytes, verify } from "node:crypto";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const ece = require("http_ece");
const webpush = require("web-push");
const [what, argument] = process.argv.slice(2);

if (what === "keys") {
  const keys = createECDH("prime256v1");
  keys.generateKeys();
  const text = (bytes) => bytes.toString("base64url");
  console.log(
    JSON.stringify({
      private: text(keys.getPrivateKey()),
      p256dh: text(keys.getPublicKey()),
      auth: text(randomBytes(16)),
    }),
  );
} else {
  const given = JSON.parse(argument);
  const keys = createECDH("prime256v1");
  keys.setPrivateKey(Buffer.from(given.private, "base64url"));
  const plaintext = ece.decrypt(Buffer.from(given.body, "base64url"), {
    version: "aes128gcm",
    privateKey: keys,
    authSecret: given.auth,
  });

  const [, token, key] = given.authorization.match(/^vapid t=([^,]+), k=(.+)$/);
  const point = Buffer.from(key, "base64url");
  const jwk = { kty: "EC", crv: "P-256", x: point.subarray(1, 33), y: point.subarray(33) };
  const publicKey = createPublicKey({
    key: { ...jwk, x: jwk.x.toString("base64url"), y: jwk.y.toString("base64url") },
    format: "jwk",
  });
  const [header, claims, signature] = token.split(".");
  const verified = verify(
    "sha256",
    Buffer.from(`${header}.${claims}`),
    { key: publicKey, dsaEncoding: "ieee-p1363" },
    Buffer.from(signature, "base64url"),
  );

  const own = webpush.generateVAPIDKeys();
  const theirs = webpush.generateRequestDetails(
    { endpoint: given.endpoint, keys: { p256dh: keys.getPublicKey("base64url"), auth: given.auth } },
    "wake",
    {
      TTL: 60,
      urgency: "high",
      topic: "wake",
      vapidDetails: { subject: "mailto:ops@example.com", publicKey: own.publicKey, privateKey: own.privateKey },
    },
  );
  console.log(
    JSON.stringify({
      plaintext: plaintext.toString(),
      verified,
      claims: JSON.parse(Buffer.from(claims, "base64url")),
      headers: Object.keys(theirs.headers).map((name) => name.toLowerCase()),
    }),
  );
}
