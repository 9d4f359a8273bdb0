// Uploads one file with tus-js-client, as an application would. What happens is told as JSON lines on stdout.
//
// node tus.mjs ENDPOINT GRANT FILE URL_STORAGE OPTIONS(JSON): options of tus.Upload, and `abort_at`: terminate the
// upload once that many bytes are accepted.
import { createReadStream } from 'node:fs'
import { PassThrough } from 'node:stream'
import * as tus from 'tus-js-client'

const [endpoint, grant, file, storage, given] = process.argv.slice(2)
const { abort_at, ...options } = JSON.parse(given)
const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`)

// What has no length is a stream that Node cannot see the file behind.
const source = createReadStream(file)
const upload = new tus.Upload(options.uploadLengthDeferred ? source.pipe(new PassThrough()) : source, {
  endpoint,
  headers: { Authorization: `Bearer ${grant}` },
  retryDelays: [0, 100, 200, 400],
  urlStorage: new tus.FileUrlStorage(storage),
  fingerprint: async () => file,
  metadata: { filename: 'sample.bin', filetype: 'application/octet-stream' },
  ...options,
  onUploadUrlAvailable: () => say({ url: upload.url }),
  onAfterResponse: (request, response) => {
    say({ method: request.getMethod(), status: response.getStatus(), offset: response.getHeader('Upload-Offset') })
  },
  onChunkComplete: (_, accepted) => {
    if (abort_at && accepted >= abort_at) {
      upload.abort(true).then(() => say({ terminated: upload.url }))
    }
  },
  onError: (error) => {
    console.error(error)
    process.exit(1)
  },
  onSuccess: ({ lastResponse }) => say({ done: true, blob: lastResponse.getHeader('Waxwing-Blob') }),
})
const previous = await upload.findPreviousUploads()
if (previous.length > 0) {
  say({ resuming: previous[0].uploadUrl })
  upload.resumeFromPreviousUpload(previous[0])
}
upload.start()
