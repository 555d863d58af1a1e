// A program with Segment's Node SDK in it. Told what to do by a JSON object on stdin, it prints one on stdout:
// `sent`, what the SDK says it has sent, and `errors`, what it reported.

import { readFileSync } from 'node:fs'
import { Analytics } from '@segment/analytics-node'

const told = JSON.parse(readFileSync(0, 'utf8'))
const sent = []
const errors = []
const client = new Analytics({
  writeKey: told.key,
  host: told.host,
  flushAt: told.mode === 'sync' ? 1 : (told.batch ?? 100),
  flushInterval: 100,
})
client.on('error', (error) => errors.push({ error: String(error.reason), messages: 1 }))

function send(call, params) {
  const context = { app: { name: told.app }, traits: { 'café': '☕' } }
  return new Promise((resolve) => {
    client[call]({ ...params, context }, (error, ctx) => {
      const { type, messageId, timestamp } = ctx.event
      if (!error) sent.push({ type, messageId, timestamp })
      resolve()
    })
  })
}

const calls = []
for (let index = 0; index < (told.tracks ?? 0); index++) {
  calls.push(['track', { userId: `user ${index}`, event: 'Bulk', properties: { index } }])
}
for (const { messageId, timestamp } of told.fixed ?? []) {
  calls.push(['track', { userId: 'fixed', event: 'Fixed', messageId, timestamp: new Date(timestamp) }])
}
if (told.all_calls) {
  const traits = { email: 'josé@example.com', address: { city: 'Zürich' }, since: new Date('2026-01-02T03:04:05Z') }
  calls.push(['identify', { userId: 'u-1', anonymousId: 'a-1', traits }])
  calls.push(['group', { userId: 'u-1', groupId: 'g-9', traits: { name: 'Acme 株式会社', seats: 25 } }])
  calls.push(['track', { userId: 'u-1', anonymousId: 'a-1', event: 'Order ✅', properties: told.properties }])
  const page = { url: 'https://shop.example/prices?utm_source=news', referrer: 'https://search.example/q' }
  calls.push(['page', { userId: 'u-1', category: 'Docs', name: 'Prices', properties: page }])
  calls.push(['screen', { anonymousId: 'a-1', name: 'Home', properties: { tab: 2 } }])
  calls.push(['alias', { previousId: 'a-1', userId: 'u-1' }])
}
if (told.mode === 'sync') {
  for (const [call, params] of calls) await send(call, params)
} else {
  const all = calls.map(([call, params]) => send(call, params))
  await client.closeAndFlush({ timeout: 60_000 })
  await Promise.all(all)
}
process.stdout.write(JSON.stringify({ sent, errors }) + '\n')
