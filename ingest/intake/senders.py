"""Who sent a request, and the location of an address named in an event: country from the CDN or the MaxMind file,
then the address, anonymised if configured."""

from __future__ import annotations

from collections.abc import Mapping

from ingest.events.anonymity import own_address
from ingest.events.arrival import Sender
from ingest.events.limits import READ_USER_AGENT_CHARACTERS
from ingest.events.values.locations import CountryDatabase, Place, anonymise, public_address
from ingest.http.prefetch import is_made_ahead


class Senders:
    """Describes senders from their requests."""

    def __init__(self, countries: CountryDatabase | None, *, anonymises: bool) -> None:
        """`countries`: None if only the CDN names them.  `anonymises`: whether addresses lose their last part."""
        self._countries = countries
        self._anonymises = anonymises
        self._conceal = anonymise if anonymises else str

    def describe(self, address: str, headers: Mapping[str, str], country: str | None) -> Sender:
        """The sender of a request from this address ("" if unknown). `country`: named by the CDN, if at all."""
        region = None
        if country is None and self._countries is not None and address:
            country, region = self._countries.locate(address)
        user_agent = headers.get("User-Agent", "")
        own = own_address(address) if self._anonymises else ""
        cut, ahead = user_agent[:READ_USER_AGENT_CHARACTERS], is_made_ahead(headers)
        return Sender(self._conceal(address), cut, country, region, own, ahead)

    def locate(self, text: str) -> Place | None:
        """The location of an address that an event names; None if it is not a public address."""
        address = public_address(text)
        if not address:
            return None
        country, region = self._countries.locate(address) if self._countries is not None else (None, None)
        return Place(self._conceal(address), country, region)
