// Lints an AsyncAPI document with the project's own parser; tells every complaint as a JSON line on stdout.
//
// node asyncapi.mjs URL
import { Parser } from '@asyncapi/parser'

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`)
const text = await (await fetch(process.argv[2])).text()
const { document, diagnostics } = await new Parser().parse(text)
for (const { severity, message, path } of diagnostics) {
  say({ severity, message, path: path.join('.') })
}
if (!document) process.exit(1)
const operations = document.operations().all()
say({
  done: true,
  version: document.version(),
  channels: document.channels().all().map((channel) => channel.address()),
  operations: operations.length,
  replies: operations.filter((operation) => operation.reply()).length,
  messages: document.components().messages().all().length,
})
