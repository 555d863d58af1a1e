// The snippet is a script of its own.
window.record = (n) => ingest.track('soak', { n })
