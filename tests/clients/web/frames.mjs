// A client of the messaging frames written against `ws` and the protocol's description alone: JSON subprotocol, no code of
// ours. What happens is told as JSON lines on stdout.
//
// node frames.mjs SOCKET_URL ALICE BOB: two people, each {account, device, reg_id, token} as JSON.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import WebSocket from 'ws'

const [url, ...given] = process.argv.slice(2)
const [alice, bob] = given.map((person) => JSON.parse(person))
const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`)
const base64 = (uuid) => Buffer.from(uuid.replaceAll('-', ''), 'hex').toString('base64')

/** A socket whose frames can be waited for. */
class Line {
  constructor(protocols, options) {
    this.frames = []
    this.waiting = []
    this.socket = new WebSocket(url, protocols, options)
    this.closed = new Promise((done) => this.socket.on('close', (code) => done(code)))
    this.socket.on('error', () => {})
    this.socket.on('message', (data, binary) => {
      assert.equal(binary, false, 'the JSON subprotocol is text')
      this.frames.push(...data.toString().split('\n').filter(Boolean).map((line) => JSON.parse(line)))
      this.waiting.splice(0).forEach((wake) => wake())
    })
  }

  async open() {
    await new Promise((done, failed) => this.socket.on('open', done).on('error', failed))
    return this
  }

  put(frame) {
    this.socket.send(`${JSON.stringify(frame)}\n`)
  }

  /** The first frame that has `name`, taken off. */
  async next(name) {
    for (;;) {
      const at = this.frames.findIndex((frame) => frame[name])
      if (at >= 0) return this.frames.splice(at, 1)[0]
      const gone = await Promise.race([this.closed, new Promise((wake) => this.waiting.push(wake))])
      assert.equal(gone, undefined, `closed with ${gone} before ${name}`)
    }
  }
}

const hello = ({ account, device, reg_id }, more = {}) => ({
  id: 1,
  hello: { account: base64(account), device, regId: reg_id, client: 'ws/1', foreground: true, ...more },
})

async function connected(person, more) {
  const headers = { Authorization: `Bearer ${person.token}` }
  const line = await new Line(['waxwing.v1.json'], { headers }).open()
  line.put(hello(person, more))
  const { id, welcome } = await line.next('welcome')
  assert.equal(id, 1)
  return { line, welcome }
}

// Plain WebSocket first: what is negotiated, and what is not.
const line = await new Line(['waxwing.v2.pb', 'waxwing.v1.json'], { perMessageDeflate: true }).open()
assert.equal(line.socket.protocol, 'waxwing.v1.json')
assert.equal(line.socket.extensions, '', 'compression is not negotiated')
const pong = new Promise((done) => line.socket.on('pong', done))
line.socket.ping('still there?')
assert.equal((await pong).toString(), 'still there?')
line.put(hello(alice, { token: alice.token }))
await line.next('welcome')
// In fragments, the Ping of the frames' own.
const ping = Buffer.from('{"id":2,"ping":{"nonce":"18446744073709551615"}}\n')
for (const [at, byte] of [...ping].entries()) {
  line.socket.send(Buffer.from([byte]), { fin: at === ping.length - 1, binary: false })
}
assert.deepEqual(await line.next('pong'), { id: 2, pong: { nonce: '18446744073709551615' } })
line.put({ id: 3, bye: { reason: 'done' } })
assert.equal(await line.closed, 1000)

const refused = new WebSocket(url, ['something.else'])
const status = await new Promise((done) => refused.on('unexpected-response', (_, answer) => done(answer.statusCode)))
assert.equal(status, 400, 'no subprotocol that both speak')

for (const [protocol, sent, code] of [
  ['waxwing.v1.json', '{"hello":', 4400],
  ['waxwing.v1.json', Buffer.from('{}'), 4400],
  ['waxwing.v1.pb', 'text', 4400],
  ['waxwing.v1.json', '{"ping":{}}', 4400],
  ['waxwing.v1.json', JSON.stringify(hello(alice, { token: bob.token })), 4403],
  ['waxwing.v1.json', JSON.stringify(hello(alice)), 4401],
  ['waxwing.v1.json', ' '.repeat(2_000_000), 4413],
]) {
  const bad = await new Line([protocol]).open()
  bad.socket.send(sent)
  assert.equal(await bad.closed, code, String(sent).slice(0, 40))
}
say({ plain: 'passed' })

// A message from alice to bob: sent, sent again, delivered, acked, and gone.
const from = await connected(alice)
const msgId = randomBytes(16).toString('base64')
const send = {
  msgId,
  direct: {
    account: base64(bob.account),
    devices: [{ device: bob.device, regId: bob.reg_id, ciphertext: Buffer.from('sealed').toString('base64') }],
  },
  urgency: 'HIGH',
}
from.line.put({ id: 5, send })
const first = await from.line.next('sendResult')
assert.equal(first.id, 5)
assert.equal(first.sendResult.duplicate ?? false, false)
from.line.put({ id: 6, send })
const again = await from.line.next('sendResult')
assert.deepEqual([again.id, again.sendResult.duplicate], [6, true])
assert.equal(again.sendResult.serverTs, first.sendResult.serverTs)
from.line.put({ id: 7, send: { ...send, direct: { ...send.direct, devices: [] }, msgId: randomBytes(16).toString('base64') } })
const mismatch = await from.line.next('error')
assert.deepEqual([mismatch.id, mismatch.error.code, mismatch.error.missing], [7, 'DEVICE_MISMATCH', [bob.device]])

const to = await connected(bob)
assert.equal(to.welcome.pending[0].countEstimate, '1')
const { deliver } = await to.line.next('deliver')
const [envelope] = deliver.envelopes
assert.equal(envelope.msgId, msgId)
assert.equal(Buffer.from(envelope.body, 'base64').toString(), 'sealed')
assert.equal(envelope.fromAccount, base64(alice.account))
to.line.put({ ack: { upTo: envelope.seq } })
to.line.put({ id: 8, bye: {} })
assert.equal(await to.line.closed, 1000)

const later = await connected(bob, { have: { epoch: to.welcome.epoch, normal: envelope.seq } })
assert.equal(later.welcome.pending[0].countEstimate ?? '0', '0')
await later.line.next('queueEmpty')
// The older connection of the same device is displaced by a newer one.
const newer = await connected(bob, { resumeToken: later.welcome.resumeToken })
assert.equal(await later.line.closed, 4409)
newer.line.put({ id: 9, bye: {} })
from.line.put({ id: 9, bye: {} })
assert.deepEqual([await newer.line.closed, await from.line.closed], [1000, 1000])
say({ done: true })
