"""From a request's body to its record: the handler, deduplication, and the turn of the loop that processes them."""
