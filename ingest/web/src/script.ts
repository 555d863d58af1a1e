/* The script that a page includes: its options are attributes of its tag. */

import { start } from './tracker'

const tag = document.currentScript as any
const page = window as any
const early = page.ingest

// A page that includes it twice has one tracker. And an element named `currentScript` is no script: it has no text, and
// `undefined + 1` is not true.
if (tag.text + 1 && (!early?.q || early.q.map)) {
  const options: any = { ...tag.dataset }
  // Most attributes need no value.
  for (const name in options) options[name] ||= name != 'key'
  // The collector writes another path in here if it is configured to.
  options.events = new URL('v1/events', tag.src).href
  page.ingest = start(options, (name) => import(tag.src.replace(/(\.[0-9a-f]{16})?(\.js)?(?=[?#]|$)/, `.${name}$2`)))
  // Calls made before the script was there, and those of functions that a page keeps from then.
  const push = ([name, given, done]: any) => done(page.ingest[name](...given))
  early?.q?.map(push)
  page.ingest.q = { push }
}
