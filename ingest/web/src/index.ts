/* The tracker for pages that are bundled: `import { init } from 'ingest-web'`. */

import { start } from './tracker'
import type { Ingest, Options } from './types'

export type { Ingest, Lead, Options, Properties, Variant } from './types'

/** Start the tracker, once a page. */
export function init(options: Options): Ingest {
  const root = options.root.replace(/\/*$/, '/')
  return start({ events: root + 'v1/events', ...options, root }, (name) =>
    name == 'extra' ? import('./extra') : import('./vitals'),
  )
}
