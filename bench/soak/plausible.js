// As its documentation sets it up, and with what a page on localhost needs.
import { init, track } from '@plausible-analytics/tracker'

const { collector } = document.currentScript.dataset
init({ domain: 'soak', endpoint: `${collector}/api/event`, captureOnLocalhost: true, logging: false })
window.record = (n) => track('soak', { props: { n } })
