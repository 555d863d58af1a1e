// Live pages: what is said in the stream, in the elements that have data-live. Sent as one module with dashboard.js,
// whose names it uses in its functions.

const MOST_ROWS = 100

const hooks = (name) => document.querySelectorAll(`[data-live="${name}"]`)
const tell = (name, text) => hooks(name).forEach((each) => { each.textContent = text })
let stream

// A copy of a template's row. Elements with data-field get the entry's text.
export function rowOf(template, entry) {
  const row = template.content.firstElementChild.cloneNode(true)
  for (const each of row.querySelectorAll('[data-field]')) {
    const value = entry[each.dataset.field] ?? ''
    each.textContent = each.dataset.field === 'at' ? clock.format(new Date(value)) : value
  }
  return row
}

// Put entries on top of a list, the newest first. `isWhole`: they are the newest of all, and some may be there already:
// from an earlier message, or in the page as it came.
export function addRows(list, entries, isWhole) {
  const template = list.querySelector('template')
  if (!template) return
  list.prepend(template)
  const rows = isWhole ? [...list.children].slice(1) : []
  rows.filter((row) => !row.entry).slice(0, entries.length).forEach((row) => row.remove())
  const there = new Set(rows.map((row) => row.entry))
  for (const entry of entries) {
    const key = JSON.stringify(entry)
    if (!there.has(key)) template.after(Object.assign(rowOf(template, entry), { entry: key }))
  }
  while (list.children.length > MOST_ROWS + 1) list.lastElementChild.remove()
}

// Events a second, over the last five seconds.
export function rateOf(perSecond) {
  const last = perSecond.slice(-5)
  const mean = last.reduce((sum, count) => sum + count, 0) / (last.length || 1)
  return mean.toLocaleString('en', { maximumFractionDigits: mean < 10 ? 1 : 0 })
}

// A line of 60 points, in a box of 59 by 24.
export function lineOf(perSecond) {
  const most = Math.max(1, ...perSecond)
  const places = perSecond.map((count, at) => `${60 - perSecond.length + at} ${(23 - (count / most) * 22).toFixed(1)}`)
  return places[1] ? `M${places.join('L')}` : ''
}

const held = { events: [], refused: [] }
let isHeld = false

function take(message) {
  const refused = Object.values(message.rejected).reduce((sum, count) => sum + count, 0)
  tell('rate', rateOf(message.per_second))
  tell('accepted', message.accepted.toLocaleString('en'))
  tell('rejected', refused.toLocaleString('en'))
  for (const svg of hooks('sparkline')) svg.querySelector('path').setAttribute('d', lineOf(message.per_second))
  for (const name of ['events', 'refused']) {
    held[name] = [...held[name], ...message[name]].slice(-MOST_ROWS)
    if (!isHeld) release(name, message.first)
  }
  if (message.events.length) hooks('first').forEach((each) => welcome(each, message.events.at(-1)))
}

function release(name, isWhole) {
  hooks(name).forEach((list) => addRows(list, held[name], isWhole))
  if (held[name].length) hooks(`no-${name}`).forEach((each) => { each.hidden = true })
  held[name] = []
}

// The event that a page without events waits for: say so, and show the page anew when it is counted. That takes a
// second or so; not for ever, as there are events that are not counted.
function welcome(element, { id, name }) {
  if (element.dataset.come) return
  element.dataset.come = id
  element.replaceChildren(make('b', {}, name), ' has arrived.')
  const times = Number(sessionStorage[`ingest-first-${id}`] ?? 0)
  sessionStorage[`ingest-first-${id}`] = times + 1
  if (times < 5) setTimeout(() => location.reload(), 1500 * 2 ** times)
}

// Open or close the stream: it is open while somebody sees something live.
function follow() {
  const { stream: url } = body.dataset
  if (!url || isSignedOut || document.hidden || !document.querySelector('[data-live]')) {
    stream?.close()
    stream = undefined
    return
  }
  if (stream && stream.readyState !== EventSource.CLOSED) return
  const opened = stream = new EventSource(url)
  tell('state', 'Connecting…')
  opened.addEventListener('live', ({ data }) => take(JSON.parse(data)))
  opened.onopen = () => tell('state', 'Live')
  opened.onerror = async () => {
    tell('state', 'Connecting again…')
    if (opened.readyState !== EventSource.CLOSED) return
    // The browser has given up, and does not say why.
    const answer = await fetch(url, { method: 'HEAD', redirect: 'manual' }).catch(() => ({}))
    if (answer.status === 401 || answer.type === 'opaqueredirect') return signedOut()
    if (answer.status === 503) tell('state', 'Too many people follow at the moment')
    setTimeout(() => opened === stream && follow(), 5000)
  }
}

for (const control of hooks('hold')) {
  control.hidden = false
  control.onclick = () => {
    isHeld = !isHeld
    control.textContent = isHeld ? 'Go on' : 'Hold'
    if (!isHeld) for (const name of ['events', 'refused']) release(name, true)
  }
}
