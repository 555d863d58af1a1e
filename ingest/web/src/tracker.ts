/* The tracker: makes events, keeps them until the collector has them on disk, and sends them. See ../README.md.

   It is read by every visitor of every page, so that it is written to be small: `npm run build` prints what it weighs. */

import type { Extras } from './extra'
import type { Ingest, Options, Properties } from './types'

/** All that is kept is in these entries of the storage: the visitor, the visitor's choice, until when the collector
 * wants nothing, how many events were given up; and one entry for each queued event, in order. */
const VISITOR = '_ingest'
const CHOICE = '_ingest.out'
const WAIT = '_ingest.wait'
const LOST = '_ingest.lost'
const QUEUED = '_ingest:'

const SESSION_MS = 18e5
/** How long events wait for others, to be sent together. */
const GATHER_MS = 200
const FIRST_RETRY_MS = 1e3
/** Up to four minutes and a quarter. */
const MOST_DOUBLINGS = 8
/** However long the collector says; a longer one in the storage is rubbish. */
const LONGEST_WAIT_MS = 36e5
const TIMEOUT_MS = 3e4
const MOST_EVENTS = 1e4
const MOST_CHARACTERS = 4e6
const MOST_MS = 6048e5
/** The most characters of a request: at most 60,000 bytes, as all requests of a page that outlive it share 64 KiB. */
const REQUEST_CHARACTERS = 2e4

export interface Visitor {
  /** Anonymous id, user id, session id, and time of the last event. */
  a?: string
  u?: string | number
  s?: string
  t?: number
  /** Of the session: its first page, that page's referrer, and its campaign, named as in Segment's context. */
  l?: string
  r?: string
  c?: Record<string, string>
}

/** What the extras get of the tracker. */
export interface Inside {
  emit(name: string, properties?: Properties, type?: string): void
  visitor(): Visitor
  page(): string
  /** Whether nothing may be sent now. */
  off(): boolean
  /** Whether the visitor's and the session's ids may not be sent. */
  cookieless?: boolean
  load: Load
  /** The collector's address, if it is not where the script comes from. */
  root?: string
}

/** Imports one of the modules that are not loaded before they are used: `extra` or `vitals`. */
export type Load = (name: string) => Promise<any>

export function start(options: Omit<Options, 'root'> & { root?: string; events: string }, load: Load): Ingest {
  const { root, events: url, key, hash, signal } = options
  const nav = navigator as any
  const doc = document as any
  const gpc = nav.globalPrivacyControl || undefined
  const dnt = nav.doNotTrack == 1 || undefined
  const signalled = (gpc || dnt) && signal != 'ignore'
  const cookieless = options.cookieless || signalled
  // The first use of Intl takes a phone 50 ms.
  const win = window as any
  const timezone = win.Temporal?.Now?.timeZoneId() || Intl.DateTimeFormat().resolvedOptions().timeZone
  /** The day on which the page was opened, for the collector: a visit that goes over midnight is one visitor's. */
  const today = new Date().toISOString().slice(0, 10)
  const tab = uuid().slice(0, 8)

  /** Used where there is no storage, or none may be used, or it is full. */
  const memory: Record<string, string> = {}
  let local: Storage | undefined
  let store: Storage | undefined
  let made = 0
  let timer = 0
  /** After so many failed requests in a row, this tab waits until `pause`. */
  let failures = 0
  let pause = 0
  let most = REQUEST_CHARACTERS
  let inFlight: string[] = []
  let release = () => {}

  try {
    local = localStorage
  } catch {}
  const locks = local && nav.locks

  const get = (name: string) => memory[name] ?? store?.getItem(name)
  const put = (name: string, value: unknown, into = store) => {
    try {
      into!.setItem(name, '' + value)
      delete memory[name]
    } catch {
      memory[name] = '' + value
    }
  }
  const remove = (name: string) => {
    delete memory[name]
    store?.removeItem(name)
  }
  const all = () =>
    Object.keys(memory)
      .concat(Object.keys(store || {}))
      .filter((name) => name.startsWith(QUEUED))
      .sort()
  const choice = () => memory[CHOICE] ?? local?.getItem(CHOICE)
  const silent = () => choice() == '1' || (signalled && signal == 'drop')
  /** Whether nothing may be stored or sent yet. */
  const held = () => options.consent && choice() != '0'
  const off = () => held() || silent()
  const open = () => {
    store = cookieless || off() ? undefined : local
    // Another tab may have had consent first.
    if (store?.getItem(VISITOR)) delete memory[VISITOR]
    Object.keys(memory).map((name) => put(name, memory[name]))
  }

  // The visitor and the session.

  const visitor = (user?: any): Visitor => {
    let found: Visitor = {}
    const now = Date.now()
    try {
      found = { ...JSON.parse(get(VISITOR)!) }
    } catch {}
    if (!found.a?.trim) found = { a: uuid() }
    if (!(now - found.t! < SESSION_MS)) {
      found.s = uuid()
      found.l = page()
      found.r = doc.referrer
      found.c = {}
      new URLSearchParams(location.search).forEach((value, name) => {
        if (name.startsWith('utm_')) found.c![name == 'utm_campaign' ? 'name' : name.slice(4)] = value
      })
    }
    found.t = now
    // Anything else would have every later event refused.
    if (user?.trim || user?.toFixed) found.u = user
    put(VISITOR, JSON.stringify(found))
    return found
  }

  /** The page's address, without its fragment, which may hold the tokens of a sign-in. With hash routing, a route goes
   * before the query: it is part of the path. */
  const page = () =>
    (hash ? location.href.replace(/(\?[^#]*)?#!?\/(.*)/, '/$2$1') : location.href).replace(/#.*/, '')

  // Making events.

  const emit = (name: string, properties?: Properties, type?: string, user?: any): void => {
    if (silent()) return
    if (doc.prerendering)
      return doc.addEventListener('prerenderingchange', () => emit(name, properties, type, user))
    try {
      const { a, u, s, r, c } = visitor(user)
      const now = new Date()
      put(
        QUEUED + (+now).toString(36) + (made++ + 1e6).toString(36) + tab,
        JSON.stringify({
          id: uuid(),
          name,
          type,
          timestamp: now,
          url: page(),
          referrer: r,
          properties,
          context: {
            screen: win.screen.width + 'x' + win.screen.height,
            language: nav.language,
            timezone,
            campaign: c,
            gpc,
            dnt,
          },
          user_id: u,
          ...(cookieless ? { cookieless: today } : { anonymous_id: a, session_id: s }),
        }),
      )
      if (!(made % 500)) trim()
      timer ||= setTimeout(flush, GATHER_MS)
    } catch (error) {
      // Properties that JSON cannot hold, for example. The page goes on.
      console.error(error)
      lose(1)
    }
  }
  const lose = (count: number) => put(LOST, (+get(LOST)! || 0) + count)

  /** Keep within the bounds: the oldest go first. Returns what is left, oldest first. */
  const trim = () => {
    const names = all()
    const size = (name: string) => ('' + get(name)).length
    let characters = names.reduce((sum, name) => sum + size(name), 0)
    let count = 0
    for (let name; (name = names[0]); names.shift()) {
      // The name has the time at which it was queued.
      const old = parseInt(name.slice(8, 16), 36) < Date.now() - MOST_MS
      if (names.length <= MOST_EVENTS && characters <= MOST_CHARACTERS && !old) break
      characters -= size(name)
      remove(name)
      count++
    }
    if (count) lose(count)
    return names
  }

  // Sending them.

  const later = (ms: number) => {
    clearTimeout(timer)
    timer = setTimeout(flush, ms)
  }

  /** Takes the first events of `names` out of it, as many as go into one request. Returns the request's body. */
  const take = (names: string[], taken: string[]) => {
    let characters = 0
    const events: string[] = []
    for (let name; (name = names[0]); names.shift()) {
      const event = get(name)
      try {
        // Fails if another tab has sent it, or if anything else is stored under our names.
        JSON.parse(event!).id.length
      } catch {
        remove(name)
        continue
      }
      characters += event!.length
      if (characters > most && taken[0]) break
      taken.push(name)
      events.push(event!)
    }
    return taken[0] && `{"batch":[${events}],` + JSON.stringify({ sentAt: new Date(), write_key: key || undefined }).slice(1)
  }

  /** Send everything that is queued. Returns when there is nothing left, or after a failure. */
  const send = async () => {
    let names = trim()
    const lost = +get(LOST)!
    if (lost) {
      remove(LOST)
      emit('events_lost', { count: lost }, 'system')
      names = all()
    }
    for (let body; !silent() && (body = take(names, (inFlight = []))); ) {
      let status = 0
      let wait = 0
      try {
        const answer = await fetch(url, {
          method: 'POST',
          body,
          keepalive: body.length < REQUEST_CHARACTERS + 1e3,
          signal: (AbortSignal as any).timeout?.(TIMEOUT_MS),
        })
        const after = answer.headers.get('Retry-After')!
        wait = +after * 1e3 || Date.parse(after) - Date.now()
        // Anything on the way may say 200 or 400; only the collector says how many it accepted.
        if (answer.status > 400 || (await answer.json()).accepted >= 0) status = answer.status
      } catch {}
      if (status == 413 && inFlight[1]) {
        // One by one, then.
        most = 0
        names = all()
      } else if (status == 200 || status == 400 || status == 413) {
        // What the collector itself refused (400) is in its books, with the reason.
        if (status > 400) lose(inFlight.length)
        inFlight.map(remove)
        failures = 0
      } else {
        if (!(wait > 0)) wait = FIRST_RETRY_MS * 2 ** Math.min(failures++, MOST_DOUBLINGS) * (0.5 + Math.random() / 2)
        wait = Math.min(wait, LONGEST_WAIT_MS)
        pause = Date.now() + wait
        // Other pages of the site need not find out for themselves.
        if (status) put(WAIT, pause)
        later(wait)
        break
      }
    }
    inFlight = []
  }

  const waiting = () => Math.max(pause, +get(WAIT)! || 0) - Date.now()
  const flush = () => {
    clearTimeout(timer)
    timer = 0
    // What a page sends before it is shown counts as a bot's.
    if (off() || doc.prerendering) return
    const wait = waiting()
    if (inFlight[0]) later(FIRST_RETRY_MS)
    else if (wait > 0 && wait <= LONGEST_WAIT_MS) later(wait)
    else if (store && locks)
      // One tab at a time sends, also what others have queued. (Without locks, on a page without TLS, two may send the
      // same; it is one event by its id.) The lock is released when the page goes: a page with a lock could not be kept
      // for going back.
      locks
        .request(VISITOR, { ifAvailable: true }, (lock: unknown) =>
          lock
            ? new Promise<void>((done) => ((release = done), send().then(done, done)))
            : later(FIRST_RETRY_MS),
        )
        .catch(send)
    else send()
  }

  addEventListener('online', () => {
    pause = 0
    flush()
  })
  addEventListener('pagehide', () => release())
  doc.addEventListener('visibilitychange', () => {
    if (doc.hidden && !off() && waiting() <= 0) {
      // Perhaps the last chance. Whether it arrives nobody says, so that it stays queued.
      const names = all().filter((name) => name.endsWith(tab) && !inFlight.includes(name))
      for (let body; (body = take(names, [])) && nav.sendBeacon(url, body); );
    }
  })

  const extra = (name: keyof Extras, given: any): Promise<any> =>
    load('extra').then((module) => module.extras({ emit, visitor, page, off, cookieless, load, root })[name](given))

  const api: Ingest = {
    track: (name, properties) => emit(name, properties),
    page: (properties) => emit('page_view', properties),
    identify: (id, traits) => emit('identify', traits, 'system', id),
    reset: () => remove(VISITOR),
    lead: (fields) => extra('lead', fields),
    variant: (experiment) => extra('variant', experiment),
    optOut() {
      store = local
      all().concat(VISITOR, WAIT, LOST).map(remove)
      put(CHOICE, 1)
      open()
    },
    optIn() {
      put(CHOICE, 0, local)
      open()
      flush()
    },
  }

  // What happens without calls.

  let last: string | undefined
  const view = () => {
    const found = page().replace(options.query ? '' : /\?.*/, '')
    if (found != last) api.page()
    last = found
  }
  open()
  if (!options.manual) {
    view()
    addEventListener('pageshow', (event) => {
      if (event.persisted) api.page()
    })
    if (win.navigation) win.navigation.addEventListener('currententrychange', view)
    else {
      for (const name of ['pushState', 'replaceState'] as const) {
        const was = history[name]
        history[name] = (...given) => {
          was.apply(history, given)
          view()
        }
      }
      addEventListener('popstate', view)
    }
  }
  later(GATHER_MS)

  for (const type of ['click', 'auxclick', 'submit'])
    addEventListener(
      type,
      ({ target, button }: any) => {
        const marked: Element = target.closest?.('[data-track]')
        // Not a click of the right button; and of a form, that it is submitted.
        if (!marked || button > 1 || (type == 'submit') != (marked.tagName == 'FORM')) return
        const properties: Properties = {}
        for (const { name, value } of marked.attributes)
          if (name.startsWith('data-track-')) properties[name.slice(11)] = value
        emit(marked.getAttribute('data-track')!, properties)
      },
      true,
    )
  if (options.auto) extra('auto', options.auto).catch(() => {})
  return api
}

/** A random id. Pages that are not served over TLS have no `randomUUID`. */
const uuid = () => crypto.randomUUID?.() || crypto.getRandomValues(new Uint32Array(4)).join('')
