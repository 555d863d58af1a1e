// As its documentation sets it up for a collector of one's own: everything else is its default.
import { AnalyticsBrowser } from '@segment/analytics-next'

const { collector } = document.currentScript.dataset
const { host } = new URL(collector)
const analytics = AnalyticsBrowser.load(
  { writeKey: 'soak', cdnURL: collector },
  { integrations: { 'Segment.io': { apiHost: `${host}/v1`, protocol: 'http' } } },
)
analytics.page()
window.record = (n) => void analytics.track('soak', { n })
