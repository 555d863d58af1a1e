/* Web vitals as events, with Google's library. */

import { onCLS, onFCP, onINP, onLCP, onTTFB } from 'web-vitals'
import type { Metric } from 'web-vitals'
import type { Inside } from './tracker'

/** Record each of the page's vitals as an event `web_vital`, once it is final. */
export function vitals(emit: Inside['emit']): void {
  for (const on of [onCLS, onFCP, onINP, onLCP, onTTFB])
    on(({ name, value, rating }: Metric) => emit('web_vital', { metric: name, value, rating }, 'system'))
}
