// Sends notifications with the two common libraries of Apple's service: to a device that is there, and to one that is not.
// Usage: node apns.mjs PORT AUTHORITY KEY — tells each answer as a JSON line.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { ApnsClient, Notification } from "apns2";
import apn from "@parse/node-apn";

const [port, authority, key] = process.argv.slice(2);
const require = createRequire(import.meta.url);
const { Pool } = createRequire(require.resolve("apns2"))("undici");
const ca = readFileSync(authority);
const tell = (line) => console.log(JSON.stringify(line));

const client = new ApnsClient({
  team: "TEAMID1234",
  keyId: "KEYID12345",
  signingKey: readFileSync(key, "utf8"),
  defaultTopic: "chat.example",
});
// The library knows port 443 alone.
await client.client.close();
client.client = new Pool(`https://localhost:${port}`, { allowH2: true, connections: 1, connect: { ca } });
for (const device of ["aaaa", "dead"]) {
  try {
    await client.send(new Notification(device, { contentAvailable: true, priority: 5 }));
    tell({ library: "apns2", device, ok: true });
  } catch (error) {
    tell({ library: "apns2", device, ok: false, reason: error.reason, status: error.statusCode });
  }
}
await client.destroy();

const provider = new apn.Provider({
  token: { key, keyId: "KEYID12345", teamId: "TEAMID1234" },
  address: "localhost",
  port: Number(port),
  ca,
  production: false,
});
const note = new apn.Notification();
note.topic = "chat.example";
note.pushType = "background";
note.priority = 5;
note.contentAvailable = true;
for (const device of ["aaaa", "dead"]) {
  const { sent, failed } = await provider.send(note, device);
  tell({
    library: "node-apn",
    device,
    ok: sent.length === 1,
    reason: failed[0]?.response?.reason,
    status: Number(failed[0]?.status) || undefined,
  });
}
await provider.shutdown();
process.exit(0);
