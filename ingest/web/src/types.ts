/** What a page may pass with an event: anything that JSON can hold. */
export type Properties = Record<string, unknown>

/** How the tracker is set up: attributes of the script's tag, or arguments of `init`. */
export interface Options {
  /** The collector's address, e.g. `https://events.example.com/`. */
  root: string
  /** Where events go; by default `v1/events` below `root`. */
  events?: string
  /** The write key, if the collector asks for one. */
  key?: string
  /** Hash routing: a change of the fragment is a page view, too (`data-hash`). */
  hash?: boolean
  /** A change of nothing but the query is a page view, too (`data-query`). */
  query?: boolean
  /** No automatic page views: call `page()` (`data-manual`). */
  manual?: boolean
  /** Any of `links`, `downloads`, `forms`, separated by blanks: clicks on links to other hosts and to files, and
   * forms that are submitted, are events, too (`data-auto`). */
  auto?: string
  /** `required`: nothing is stored or sent before `optIn()` (`data-consent`). */
  consent?: string
  /** No storage at all: the collector makes a visitor's id that nobody can compute after two days (`data-cookieless`). */
  cookieless?: boolean
  /** What Global Privacy Control and Do Not Track do: `cookieless` (the default), `drop` (no events), or `ignore`
   * (`data-signal`). */
  signal?: string
}

/** The visitor's experience of an experiment: the variant's payload or, without one, its id. */
export type Variant = unknown

/** The accepted lead. */
export interface Lead {
  id: string
}

/** What a page calls, as `window.ingest` or as the value of `init`. No call throws, blocks, or delays a click. */
export interface Ingest {
  /** Record an event. It is in storage when this returns, and stays there until the collector has it on disk.
   * @param name what happened, up to 100 characters  @param properties anything about it */
  track(name: string, properties?: Properties): void
  /** Record a page view; the tracker does it by itself unless `data-manual` is set. */
  page(properties?: Properties): void
  /** Say who the visitor is: later events have this `user_id`, on this browser, until `reset()`.
   * @param id your id of the user  @param traits what is known of them; stored with the event `identify` */
  identify(id: string | number, traits?: Properties): void
  /** Forget the user, the visitor and the session, as on logging out. Queued events are still sent. */
  reset(): void
  /** Send a lead: a form (its fields named as in `POST /v1/leads`) or the fields. The page's origin must be in the
   * collector's `api_origins`. Nothing of it is kept in the browser, so show the visitor what went wrong.
   * @returns the lead; rejects with the collector's problem document, or with the network's error */
  lead(fields: HTMLFormElement | Properties): Promise<Lead>
  /** The visitor's variant of an experiment, for this session, and record that it was shown: so call it where it is.
   * The page's origin must be in `api_origins`.
   * @returns the value of the flag; rejects if there is none */
  variant(experiment: string): Promise<Variant>
  /** Stop: nothing is sent any more, on this site and browser, and what is queued or stored is removed. */
  optOut(): void
  /** Start again or, with `data-consent="required"`, start: what was queued in memory is stored and sent. */
  optIn(): void
}

declare global {
  interface Window {
    /** Of pages that include the script. */
    ingest: Ingest
  }
}
