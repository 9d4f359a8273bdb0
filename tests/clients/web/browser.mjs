// Drives Uppy's dashboard in Chromium like a person: choose a file, pause, go on, reload the page half-way, choose the
// file again. The page is served from a port of its own, so that every request to the origin is cross-origin.
//
// node browser.mjs ENDPOINT GRANT FILE WEB_DIR CHROMIUM, from the directory that holds node_modules.
import { createServer } from 'node:http'
import { build } from 'esbuild'
import { chromium } from 'playwright-core'

const [endpoint, grant, file, web, executablePath] = process.argv.slice(2)
const HALF_A_MINUTE = 30_000

const bundled = await build({
  entryPoints: [`${web}/page.mjs`], nodePaths: [`${process.cwd()}/node_modules`], bundle: true, write: false, format: 'iife',
})
const html = '<!doctype html><meta charset="utf-8"><title>Uppy</title><div id="dashboard"></div><script src="page.js"></script>'
const server = createServer((request, response) => {
  const script = request.url.startsWith('/page.js')
  response.setHeader('Content-Type', script ? 'text/javascript; charset=utf-8' : 'text/html; charset=utf-8')
  response.end(script ? bundled.outputFiles[0].text : html)
})
await new Promise((ready) => server.listen(0, '127.0.0.1', ready))

const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] })
try {
  const page = await browser.newPage()
  page.setDefaultTimeout(HALF_A_MINUTE)
  const address = `http://127.0.0.1:${server.address().port}/?${new URLSearchParams({ endpoint, grant })}`
  const choose = async () => {
    await page.locator('input[type=file]').first().setInputFiles(file)
    await page.locator('.uppy-StatusBar-actionBtn--upload').click()
  }
  const reaches = (bytes) => page.waitForFunction((bytes) => window.seen.progress >= bytes, bytes)
  const seen = () => page.evaluate(() => window.seen)

  await page.goto(address)
  await choose()
  await reaches(2 << 20)
  await page.locator('.uppy-StatusBar button[title="Pause"]').click()
  const paused = (await seen()).progress
  await page.waitForTimeout(1000)
  const later = (await seen()).progress
  await page.locator('.uppy-StatusBar button[title="Resume"]').click()
  await reaches(later + (2 << 20))
  const first = await seen()

  await page.reload()
  await choose()
  await page.waitForFunction(() => window.seen.complete !== undefined)
  const second = await seen()
  console.log(JSON.stringify({ paused, later, first, second }))
} finally {
  await browser.close()
  server.close()
}
