"""What others would write instead of this service: small services with the same endpoint, for `bench.compare`.

All check an event alike (`payload.py`), answer alike (`endpoint.py`) and store into the same table (`table.py`),
which has the columns, constraints and indexes of a day of analytics.events. They differ in what has happened by the
time of the answer. They store less than the service does: url and user agent as they came, without what it derives.
"""
