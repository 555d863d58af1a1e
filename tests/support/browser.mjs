// One browser for tests/support/browsers.py. The first line of standard input says how to start it; each further line
// is a program, {code, given, seconds}, the body of an async function of what `scope` has. Each is answered by a line,
// {value} or {error}. When standard input ends, so does the browser.
import { createInterface } from 'node:readline'
import puppeteer from 'puppeteer-core'

const AsyncFunction = (async () => {}).constructor
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`)

const browser = await puppeteer.launch(JSON.parse((await lines.next()).value))
const scope = { browser, visitors: new Map(), tabs: new Map(), errors: [], sleep, tabOf, within }
say({ value: browser.process().pid })

for await (const line of lines) {
  const { code, given, seconds } = JSON.parse(line)
  try {
    const all = { ...scope, ...given }
    const program = new AsyncFunction(...Object.keys(all), code)
    say({ value: (await within(seconds, program(...Object.values(all)))) ?? null })
  } catch (error) {
    say({ error: String(error?.stack ?? error) })
  }
}
await browser.close()
process.exit()

function sleep(seconds) {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000))
}

async function within(seconds, promise) {
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${seconds} s`)), seconds * 1000)
  })
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

// A new tab under this number. Exceptions that nobody caught in it are kept, for the test to fail with.
async function tabOf(visitor, number) {
  const page = await visitor.newPage()
  page.on('pageerror', (error) => scope.errors.push(`${page.url()}: ${error?.stack ?? error}`))
  page.on('error', () => { page.crashed = true })
  scope.tabs.set(number, page)
  return page
}
