// The page that browser.mjs opens: Uppy's dashboard, uploading over tus.
import Uppy from '@uppy/core'
import Dashboard from '@uppy/dashboard'
import Tus from '@uppy/tus'

const asked = new URLSearchParams(location.search)
window.seen = { requests: [], progress: 0, blob: null, errors: [] }
const uppy = new Uppy()
  .use(Dashboard, { inline: true, target: '#dashboard', hideProgressDetails: false })
  .use(Tus, {
    endpoint: asked.get('endpoint'),
    headers: { Authorization: `Bearer ${asked.get('grant')}` },
    chunkSize: 1024 * 1024,
    retryDelays: [0, 100, 200, 400],
    onAfterResponse: (request, response) => {
      window.seen.requests.push(request.getMethod())
      window.seen.blob = response.getHeader('Waxwing-Blob') ?? window.seen.blob
    },
  })
uppy.on('upload-progress', (_, { bytesUploaded }) => { window.seen.progress = bytesUploaded })
uppy.on('upload-error', (_, error) => window.seen.errors.push(String(error)))
uppy.on('complete', ({ successful }) => { window.seen.complete = successful.length })
