// The dashboard's module. Every page works without it. With it, panels load and refresh by themselves, charts are
// read with the pointer and with keys, and live pages follow the stream (live.js, which is sent before this as one
// module). What events say only ever becomes textContent.

const REFRESH_MS = 30_000
const FETCH_MS = 20_000

const { body, documentElement } = document
documentElement.classList.add('scripted')
// "" or "/a/prefix": the module is at BASE/dashboard/dashboard.HASH.js.
const base = new URL('..', import.meta.url).pathname.slice(0, -1)

export function make(tag, given = {}, ...children) {
  const made = Object.assign(document.createElement(tag), given)
  made.append(...children)
  return made
}

const button = (text, className, onclick) => make('button', { type: 'button', className, onclick }, text)

// The viewer's time zone. A page that was made for another one is loaded again, but only when the cookie is new: the
// server may not know the zone, or the browser may keep no cookies.

const zone = Intl.DateTimeFormat().resolvedOptions().timeZone
const isTold = () => document.cookie.split('; ').includes(`timezone=${zone}`)

if (zone && !isTold()) {
  const secure = location.protocol === 'https:' ? '; Secure' : ''
  document.cookie = `timezone=${zone}; Path=${base || '/'}; Max-Age=31536000; SameSite=Strict${secure}`
  const shown = body.dataset.zone
  const isNamed = new URLSearchParams(location.search).has('timezone')
  if (shown && shown !== zone && !isNamed && isTold()) location.reload()
}

// That something has been saved is said once, not whenever the page is loaded again.
const address = new URL(location)
if (address.searchParams.has('done')) {
  address.searchParams.delete('done')
  history.replaceState(history.state, '', address)
}

// In the page's time zone, if the browser knows it.
const clockIn = (timeZone) => new Intl.DateTimeFormat('en-GB', { timeStyle: 'medium', timeZone })
let clock = clockIn()
try {
  clock = clockIn(body.dataset.zone)
} catch {}

// What is said of the page as a whole: `notice` can be seen, `spoken` is for screen readers.

const notice = make('p', { className: 'said', role: 'status', hidden: true })
const spoken = make('p', { className: 'unseen', role: 'status' })
body.append(notice, spoken)

function say(...parts) {
  notice.hidden = !parts.length
  if (notice.textContent !== parts.map((part) => part.textContent ?? part).join('')) notice.replaceChildren(...parts)
}

let isSignedOut = false

function signedOut() {
  isSignedOut = true
  follow()
  say('You are signed out, so this page is no longer updated. ', make('a', { href: location.href }, 'Sign in again'))
}

// Panels.

const panels = () => document.querySelectorAll('[data-panel]')
const bodyOf = (panel) => panel.querySelector('.body')
// Each panel's body -> the HTML that it was made from, as the browser writes it; "" if that could not be loaded.
const made = new WeakMap()
const edited = new WeakSet()
let refreshed = Date.now()
let known = refreshed

async function fetched(url) {
  try {
    // "no-cache": the browser sends the ETag of what it has.
    const answer = await fetch(url, { cache: 'no-cache', signal: AbortSignal.timeout(FETCH_MS) })
    return [answer.status, await answer.text()]
  } catch {
    return [0, '']
  }
}

// Load a panel. Returns why it could not be, if it still shows what it did.
async function load(panel) {
  const [status, text] = await fetched(panel.dataset.panel)
  if (isSignedOut) return
  if (status === 401) return signedOut()
  const template = make('template')
  template.innerHTML = text
  // A whole page instead of a part of one says that something went wrong, and so does nothing at all.
  if (status && status < 500 && !/^\s*<!doctype/i.test(text)) return show(panel, template)
  const reason = template.content.querySelector('p')?.textContent || 'The dashboard does not answer.'
  if (made.get(bodyOf(panel)) && !panel.hasAttribute('aria-busy')) return reason
  const again = button('Try again', 'plain', () => retry(panel, again))
  panel.removeAttribute('aria-busy')
  bodyOf(panel).replaceChildren(make('p', { className: 'mistake', role: 'alert' }, reason), again)
  made.set(bodyOf(panel), '')
}

async function retry(panel, control) {
  control.disabled = true
  await load(panel)
  bodyOf(panel).querySelector('a, button, summary, [tabindex]')?.focus()
}

async function refresh() {
  if (isSignedOut) return
  refreshed = Date.now()
  const reason = (await Promise.all([...panels()].map(load))).find(Boolean)
  if (isSignedOut) return
  if (!reason) known = refreshed
  say(...(reason ? [`${reason} Shown is what was known at ${clock.format(known)}.`] : []))
}

function show(panel, template) {
  const place = bodyOf(panel)
  const html = template.innerHTML.trim()
  panel.removeAttribute('aria-busy')
  // What somebody has typed must not be taken from them.
  if (html === made.get(place) || edited.has(place)) return
  const restore = remembered(place)
  place.replaceChildren(template.content)
  made.set(place, html)
  prepare(place)
  restore()
  follow()
}

// Remember what is open, scrolled, focused and pointed at; returns what makes it so again.
function remembered(place) {
  const parts = () => {
    const times = {}
    return [...place.querySelectorAll('a, button, summary, svg, [tabindex]')].map((part) => {
      const key = part.id || part.getAttribute('href') || (part.matches('svg') ? 'svg' : part.textContent)
      times[key] = (times[key] ?? 0) + 1
      return [key + times[key], part]
    })
  }
  const before = parts().map(([key, part]) => {
    const index = pointed?.svg === part ? pointed.index : undefined
    return [key, part === document.activeElement, part.parentElement.open, index, part.scrollLeft, part.scrollTop]
  })
  return () => {
    const now = new Map(parts())
    for (const [key, isFocused, isOpen, index, left, top] of before) {
      const part = now.get(key)
      if (part?.matches('summary')) part.parentElement.open = isOpen
      part?.scrollTo(left, top)
      if (isFocused) part?.focus({ preventScroll: true })
      if (index !== undefined) point(part, index)
    }
  }
}

// Charts. `pointed` is the chart and the index of the point that the tip is about.

const tip = make('div', { className: 'tip', hidden: true })
tip.setAttribute('aria-hidden', 'true')
body.append(tip)
let pointed

const pointsOf = (svg) => svg ? [...svg.querySelectorAll('.pt')] : []

function point(svg, index, isSaid = false) {
  if (pointed) pointsOf(pointed.svg)[pointed.index]?.classList.remove('on')
  const found = pointsOf(svg)[index]
  tip.hidden = !found
  pointed = found && { svg, index }
  if (!found) return
  found.classList.add('on')
  const { label, value, before } = found.dataset
  tip.replaceChildren(`${label}\n`, make('b', {}, value), before ? `\nbefore: ${before}` : '')
  if (isSaid) spoken.textContent = `${label}: ${value}${before ? `, before: ${before}` : ''}`
  const { left, width } = found.getBoundingClientRect()
  const x = left + width / 2 - tip.offsetWidth / 2
  tip.style.left = `${Math.max(4, Math.min(x, documentElement.clientWidth - tip.offsetWidth - 4))}px`
  tip.style.top = `${Math.max(4, svg.getBoundingClientRect().top - tip.offsetHeight - 2)}px`
}

function walk(svg, key) {
  const last = pointsOf(svg).length - 1
  const index = pointed?.svg === svg ? pointed.index : undefined
  const next = {
    ArrowLeft: Math.max(0, (index ?? last + 1) - 1),
    ArrowRight: Math.min(last, (index ?? -1) + 1),
    Home: 0,
    End: last,
    Escape: -1,
  }[key]
  if (next !== undefined) point(svg, next, true)
  return next !== undefined
}

function pointAt({ clientX, clientY, pointerType }) {
  // Not the event's target, which stays the same while a finger moves.
  const found = document.elementFromPoint(clientX, clientY)?.closest('.chart .pt')
  const svg = found?.closest('.chart > svg')
  if (svg) point(svg, pointsOf(svg).indexOf(found), pointerType === 'touch')
  else if (pointed && pointed.svg !== document.activeElement) point()
}

addEventListener('pointermove', pointAt)
addEventListener('pointerdown', pointAt)
addEventListener('scroll', () => point(), { capture: true, passive: true })
body.addEventListener('focusout', ({ target }) => pointed?.svg === target && point())
documentElement.addEventListener('pointerleave', ({ pointerType }) => pointerType === 'mouse' && point())

// What the module adds to a part of a page.

// What scrolls sideways can be reached with the keys.
const sizes = new ResizeObserver((entries) => {
  for (const frame of new Set(entries.map(({ target }) => target.closest('.scroll')))) {
    if (frame?.scrollWidth > frame?.clientWidth) frame.tabIndex = 0
    else frame?.removeAttribute('tabindex')
  }
})

function prepare(part) {
  for (const svg of part.querySelectorAll('.chart > svg')) {
    svg.setAttribute('tabindex', '0')
    svg.querySelectorAll('.pt > title').forEach((title) => title.remove())
  }
  part.querySelectorAll('.scroll, .scroll > *').forEach((each) => sizes.observe(each))
  for (const text of part.querySelectorAll('[data-copy]')) {
    const frame = make('div', { className: 'copied' })
    const control = button('Copy', 'plain copy', () => copy(text, control))
    text.replaceWith(frame)
    frame.append(text, control)
  }
}

async function copy(text, control) {
  try {
    await navigator.clipboard.writeText(text.textContent)
  } catch {
    // Without TLS there is no clipboard, but there is this.
    getSelection().selectAllChildren(text)
    if (!document.execCommand('copy')) return
    getSelection().removeAllRanges()
  }
  control.textContent = spoken.textContent = 'Copied'
  setTimeout(() => { control.textContent = 'Copy' }, 1500)
}

// Forms and menus.

addEventListener('input', ({ target }) => target.closest('.body') && edited.add(target.closest('.body')))

addEventListener('change', ({ target }) => target.matches('form[data-auto] select') && target.form.requestSubmit())

addEventListener('focusin', ({ target }) => {
  closeMenus(target)
  const zones = target.list
  if (zones?.id !== 'zones' || zones.options.length > 9 || !Intl.supportedValuesOf) return
  zones.replaceChildren(...['UTC', ...Intl.supportedValuesOf('timeZone')].map((value) => make('option', { value })))
})
addEventListener('pointerdown', ({ target }) => closeMenus(target))

function closeMenus(unlessIn) {
  for (const menu of document.querySelectorAll('details.menu[open]')) {
    if (unlessIn && menu.contains(unlessIn)) continue
    if (menu.contains(document.activeElement)) menu.querySelector('summary').focus()
    menu.open = false
  }
}

// Keys. They can be switched off: people who speak to their computer type by accident (WCAG 2.1.4).

const KEYS = {
  '/': 'Search, or go to the first filter',
  '1 2 3 4': 'Today, 7, 30 or 90 days',
  '← → Home End': 'In a chart, from point to point',
  Esc: 'Close',
  '?': 'This list',
}
const SWITCH = 'ingest-keys'
let help

function showKeys() {
  if (!help) {
    const rowOf = ([keys, text]) => [make('dt', {}, make('kbd', {}, keys)), make('dd', {}, text)]
    const used = make('input', {
      type: 'checkbox',
      checked: !localStorage[SWITCH],
      onchange: () => { localStorage[SWITCH] = used.checked ? '' : 'off' },
    })
    help = make('dialog', { className: 'keys' },
      make('h2', {}, 'Keyboard'), make('dl', { className: 'facts' }, ...Object.entries(KEYS).flatMap(rowOf)),
      make('label', {}, used, ' Use these keys'),
      make('form', { method: 'dialog' }, make('button', { className: 'plain' }, 'Close')))
    help.setAttribute('aria-label', 'Keyboard')
    body.append(help)
  }
  help.showModal()
}

addEventListener('keydown', (event) => {
  const { key, target } = event
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || !target.matches) return
  if (target.matches('.chart > svg') && walk(target, key)) return event.preventDefault()
  if (key === 'Escape') return closeMenus()
  if (target.closest('input, select, textarea, dialog') || localStorage[SWITCH]) return
  if (key === '?') showKeys()
  if (key >= '1' && key <= '4') document.querySelectorAll('.controls .segments a')[key - 1]?.click()
  if (key !== '/') return
  const field = document.querySelector('main input[type=search]') ?? document.querySelector('main a.label, .chip a')
  if (field) event.preventDefault()
  field?.focus()
})

const foot = document.querySelector('.foot')
foot?.append(button('Keyboard', 'quiet', showKeys))

// On a phone, the navigation scrolls to where it is.
document.querySelector('.bar nav [aria-current]')?.scrollIntoView({ inline: 'center', block: 'nearest' })

// Begin.

function look() {
  follow()
  if (!document.hidden && Date.now() - refreshed >= REFRESH_MS - 500) refresh()
}

for (const panel of panels()) {
  if (!panel.hasAttribute('aria-busy')) made.set(bodyOf(panel), bodyOf(panel).innerHTML.trim())
}
prepare(document)
for (const panel of document.querySelectorAll('[data-panel][aria-busy]')) load(panel)
follow()
setInterval(look, REFRESH_MS)
document.addEventListener('visibilitychange', look)
addEventListener('pageshow', ({ persisted }) => persisted && (refresh(), follow()))
addEventListener('pagehide', () => { stream?.close(); stream = undefined })
