// A device whose Olm is libolm, the library that Olm was specified with, as npm has it; does what JSON lines on stdin say,
// and answers each with one on stdout. It takes and gives text, so the messages of the test are text.
const readline = require('node:readline')
const Olm = require('@matrix-org/olm')

const unpadded = (text) => text.replace(/=+$/, '')
const padded = (text) => text + '='.repeat((4 - (text.length % 4)) % 4)
const words = (text) => Buffer.from(text, 'base64').toString()
const bytes = (text) => Buffer.from(text).toString('base64')

Olm.init().then(() => {
  const account = new Olm.Account()
  account.create()
  account.generate_one_time_keys(1)
  const session = new Olm.Session()
  const deeds = {
    introduce: () => {
      const { curve25519, ed25519 } = JSON.parse(account.identity_keys())
      const [one_time] = Object.values(JSON.parse(account.one_time_keys()).curve25519)
      return { curve25519: padded(curve25519), ed25519: padded(ed25519), one_time: padded(one_time) }
    },
    sign: ({ message }) => ({ signature: padded(account.sign(new Uint8Array(Buffer.from(message, 'base64')))) }),
    start: ({ identity, one_time }) => {
      session.create_outbound(account, unpadded(identity), unpadded(one_time))
      return {}
    },
    accept: ({ identity, body }) => {
      session.create_inbound_from(account, unpadded(identity), unpadded(body))
      account.remove_one_time_keys(session)
      return { text: bytes(session.decrypt(0, unpadded(body))) }
    },
    encrypt: ({ text }) => {
      const { type, body } = session.encrypt(words(text))
      return { kind: type, body: padded(body) }
    },
    decrypt: ({ kind, body }) => ({ text: bytes(session.decrypt(kind, unpadded(body))) }),
  }
  readline.createInterface({ input: process.stdin }).on('line', (line) => {
    const asked = JSON.parse(line)
    process.stdout.write(`${JSON.stringify(deeds[asked.do](asked))}\n`)
  })
})
