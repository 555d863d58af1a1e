/* What is loaded when it is used: leads, experiments, and events that are recorded without calls. */

import type { Inside } from './tracker'
import type { Ingest, Properties, Variant } from './types'

const FILE = /\.(pdf|zip|gz|rar|7z|dmg|pkg|exe|msi|apk|docx?|xlsx?|pptx?|csv|txt|mp[34]|mov|wav)$/i
const CAMPAIGN = { utm_source: 'source', utm_medium: 'medium', utm_campaign: 'name', utm_term: 'term', utm_content: 'content' }

export interface Extras extends Pick<Ingest, 'lead' | 'variant'> {
  /** Record what `data-auto` names. */
  auto(kinds: string): void
}

let made: Extras | undefined

/** The extras of this page's tracker. */
export const extras = (inside: Inside): Extras => (made ||= make(inside))

function make({ emit, visitor, page, off, cookieless, load, root }: Inside): Extras {
  // The collector writes another path in here if it is configured to.
  root ??= new URL('./', import.meta.url).href
  const call = async (path: string, body: BodyInit) => {
    const answer = await fetch(root + path, { method: 'POST', body, keepalive: true, credentials: 'omit' })
    const found = await answer.json()
    if (!answer.ok) throw found
    return found
  }

  const lead = (fields: HTMLFormElement | Properties) => {
    const { a, s, l, r, c = {} } = visitor()
    const visit: Record<string, string | undefined> = {}
    if (!off()) {
      if (!cookieless) Object.assign(visit, { anonymous_id: a, session_id: s })
      // Only what the lead's fields can be; `file:` and `about:` are no links.
      if (/^http/.test(l!)) visit.landing_page = l
      if (/^http/.test(r!)) visit.referrer = r
      for (const [name, of] of Object.entries(CAMPAIGN)) if (c[of]) visit[name] = c[of]
    }
    if (!(fields instanceof HTMLFormElement)) return call('v1/leads', JSON.stringify({ ...visit, ...fields }))
    const form = new URLSearchParams(new FormData(fields) as any)
    // The page stays, and goes on as it likes.
    form.delete('redirect')
    for (const [name, value] of Object.entries(visit)) if (!form.has(name)) form.set(name, value!)
    return call('v1/leads', form)
  }

  const evaluate = async (experiment: string): Promise<Variant> => {
    const { a, s } = visitor()
    const context = { targetingKey: s, url: page() }
    const flag = await call('ofrep/v1/evaluate/flags/' + encodeURIComponent(experiment), JSON.stringify({ context }))
    if (flag.metadata.takes_part) {
      const exposure = { experiment, session_id: s, anonymous_id: a, url: page() }
      call('v1/experiments/exposures', JSON.stringify(exposure)).catch(() => {})
    }
    return flag.value
  }

  const variants: Record<string, Promise<Variant>> = {}
  const variant = async (experiment: string) => {
    // A page that nobody sees shows no variant.
    if ((document as any).prerendering)
      await new Promise((shown) => document.addEventListener('prerenderingchange', shown))
    if (off() || cookieless) throw Error('no experiments without a session')
    // A variant is the session's.
    const key = visitor().s + experiment
    return (variants[key] ||= evaluate(experiment).catch((error) => {
      delete variants[key]
      throw error
    }))
  }

  const auto = (named: string) => {
    // An attribute without a value is `true`.
    const kinds = '' + named
    const clicked = ({ target, button }: any) => {
      const link = target.closest?.('a[href]')
      if (!link || button > 1) return
      if (FILE.test(link.pathname) && kinds.includes('downloads')) emit('file_download', { url: link.href })
      else if (/^http/.test(link.href) && link.host != location.host && kinds.includes('links'))
        emit('outbound_link', { url: link.href })
    }
    addEventListener('click', clicked, true)
    addEventListener('auxclick', clicked, true)
    addEventListener(
      'submit',
      ({ target }: any) => {
        // Not `target.id`: a field of that name would be in its place.
        const of = (name: string) => target.getAttribute(name)
        if (kinds.includes('forms') && of('data-track') == null)
          emit('form_submit', { id: of('id'), name: of('name'), action: of('action') })
      },
      true,
    )
    // A blocker may keep them from loading; the page needs no error for that.
    if (kinds.includes('vitals')) load('vitals').then((module) => module.vitals(emit), () => {})
  }
  return { lead, variant, auto }
}
