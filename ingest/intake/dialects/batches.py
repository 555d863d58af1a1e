"""Decodes the events of a body part by part, because it is long or cannot be decoded as a whole. Pure.

A long text is cut where an event seems to end, about every `PART_BYTES`. If the cut is right, the text before it
decodes as an array; if it is inside a string or a deeper bracket, it does not, since something is left open. Then,
and in malformed text, the events are split one by one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

from ingest.base.bites import Bites
from ingest.base.refusals import PayloadRefused, Refusal, RejectReason
from ingest.events.hazards import NO_HAZARDS, clean_in_bites, find_hazards
from ingest.events.payload import Part
from ingest.intake.dialects.arrays import CannotSplit, Scan
from ingest.intake.dialects.spellings import UNREADABLE, Spellings, respell

PART_BYTES: Final = 32 * 1024
"""Bytes decoded at once: 2 ms if they are all empty objects, 7 ms if they are all escapes."""
_LOOK_BACK: Final = 8 * 1024
"""Bytes before the end of a part in which the end of an event is searched. Most events are much shorter."""
_PIECES_AT_ONCE: Final = 64
"""Elements that are decoded one by one in a bite; an error costs about 5 µs."""
LONGEST_MEMBER: Final = 4096
"""Maximum bytes of a member next to a batch: a time, a key, or a field that all its events share."""
MOST_BESIDE: Final = 50
"""Maximum number of members that the events of a batch may share."""

_BETWEEN = re.compile(rb"\}[ \t\r\n]{0,64}+,[ \t\r\n]{0,64}+(?=\{)")
_WHITESPACE: Final = b" \t\r\n"
_BATCH: Final = b'"batch"'
_COMMA, _CLOSED_ARRAY, _CLOSED_OBJECT = b",]}"


class Decoders(NamedTuple):
    """How a dialect's events are decoded. reason_of: JSON path in msgspec's message -> reject reason.

    spellings: how to treat fields that the decoders do not know; None if such fields are refused.
    """

    array: msgspec.json.Decoder[list[Any]]
    one: msgspec.json.Decoder[Any]
    reason_of: dict[str, RejectReason]
    spellings: Spellings | None = None


class Bounds(NamedTuple):
    """Limits of a body: the number of events, and the bytes of each. A longer event is refused undecoded."""

    events: int
    event_bytes: int


class Found(NamedTuple):
    """What a body holds. parts: None if it is an object without a batch.  members: the texts of the requested
    members.  cleaned: how many escapes were replaced.  beside: (name, text) of the other members."""

    parts: list[Part] | None
    members: dict[str, bytes]
    cleaned: int
    beside: Sequence[tuple[bytes, bytes]] = ()


def read_parts(body: bytes, decoders: Decoders, bounds: Bounds, names: dict[bytes, str]) -> Bites[Found | None]:
    """The events of a text that begins like an array or an object; None if it cannot be split.

    names: the requested members, JSON text of the name -> name. Raises PayloadRefused if there are too many events.
    """
    reading = _Reading(body, decoders, bounds)
    try:
        if body.startswith(b"["):
            end = yield from reading.array(0)
            if end != len(body):
                return None
            return Found(reading.parts, {}, reading.cleaned)
        return (yield from reading.envelope(names))
    except CannotSplit:
        return None


class _Reading:
    """Collects the parts of one body."""

    def __init__(self, body: bytes, decoders: Decoders, bounds: Bounds) -> None:
        self.parts: list[Part] = []
        self.cleaned = 0
        # Bytes of parts that were not reported by a `yield` yet.
        self._grown = 0
        self._count = 0
        self._body = body
        self._decoders = decoders
        self._bounds = bounds
        self._scan = Scan(body)
        # A short text was tried as a whole before.
        self._guesses = len(body) > PART_BYTES

    def envelope(self, names: dict[bytes, str]) -> Bites[Found]:
        """The batch and the requested members of a body that is an object."""
        body, scan = self._body, self._scan
        at, mark = 0, _COMMA
        parts: list[Part] | None = None
        members: dict[str, bytes] = {}
        beside: list[tuple[bytes, bytes]] = []
        while mark == _COMMA:
            start = at + 1
            key, at = scan.member(start)
            if key == _BATCH and body.startswith(b"[", at):
                # The last of several counts, as with a decoder.
                self.parts, self._count = [], 0
                at = yield from self.array(at)
                parts = self.parts
                end = yield from scan.end_of_value(at)
                if body[at : min(end, at + LONGEST_MEMBER)].strip(_WHITESPACE):
                    raise CannotSplit
            else:
                end = yield from scan.end_of_value(at)
                # An escape and its replacement have the same length.
                text, cleaned = yield from clean_in_bites(body[start:end])
                self.cleaned += cleaned
                value = text[at - start : at - start + LONGEST_MEMBER + 1]
                if key in names:
                    members[names[key]] = value[:LONGEST_MEMBER].strip(_WHITESPACE)
                elif len(beside) <= MOST_BESIDE:
                    beside.append((key, value.strip(_WHITESPACE)))
            at, mark = end, body[end]
        if mark != _CLOSED_OBJECT or at + 1 != len(body):
            raise CannotSplit
        return Found(parts, members, self.cleaned, beside)

    def array(self, at: int) -> Bites[int]:
        """Take the elements of the array that begins at `at`. Returns the position after it."""
        body = self._body
        at += 1
        while True:
            if self._guesses:
                is_rest = body.startswith(b"[") and len(body) - at <= PART_BYTES
                if is_rest and (yield from self._take(b"[" + body[at:])):
                    return len(body)
                cut = _BETWEEN.search(body, at + PART_BYTES - _LOOK_BACK, at + PART_BYTES)
                if cut is not None and (yield from self._take(b"[%b]" % body[at : cut.start() + 1])):
                    at = cut.end()
                    continue
            at, closed = yield from self._one_by_one(at)
            if closed:
                return at
            yield self._take_grown()

    def _take(self, text: bytes) -> Bites[bool]:
        """Add the text as a part if it decodes as an array of events. Returns whether it did."""
        text, cleaned = yield from clean_in_bites(text)
        yield self._take_grown()
        try:
            events = self._decoders.array.decode(text)
        except UNREADABLE:
            return False
        if events:
            self._add(Part(text, events, find_hazards(text)), cleaned)
        # An empty array is left to _one_by_one: there may be a comma before it.
        return bool(events)

    def _add(self, part: Part, cleaned: int) -> None:
        self._count += len(part.events)
        check_count(self._count, self._bounds.events)
        self.cleaned += cleaned
        self.parts.append(part)
        self._grown += part.memory_bytes

    def _take_grown(self) -> int:
        grown, self._grown = self._grown, 0
        return grown

    def _one_by_one(self, start: int) -> Bites[tuple[int, bool]]:
        """Take the elements from `start` on until there are enough for a part or the array ends. Returns (position,
        whether the array has ended)."""
        body, most = self._body, self._bounds.event_bytes
        ends: list[int] = []
        at, mark = start, _COMMA
        while mark == _COMMA and at - start < PART_BYTES:
            end = yield from self._scan.end_of_value(at)
            mark = body[end]
            if end - at > most:
                if ends:
                    yield from self._take_pieces(start, ends)
                # Enough of it is kept to show that it was too long.
                piece = body[at : at + most + 1].strip(_WHITESPACE)
                detail = f"the event has {end - at} bytes, at most {most} are allowed"
                refusal = Refusal(RejectReason.EVENT_TOO_LARGE, detail)
                self._add(Part(piece, [refusal], NO_HAZARDS, [piece]), 0)
                start, ends = end + 1, []
            else:
                ends.append(end)
                check_count(self._count + len(ends), self._bounds.events)
            at = end + 1
        if mark not in (_COMMA, _CLOSED_ARRAY):
            raise CannotSplit
        closed = mark == _CLOSED_ARRAY
        if closed and not self._count and len(ends) == 1 and not body[start : ends[0]].strip(_WHITESPACE):
            # The array is empty.
            return at, True
        if ends:
            yield from self._take_pieces(start, ends)
        return at, closed

    def _take_pieces(self, start: int, ends: list[int]) -> Bites[None]:
        """Decode the elements that end at `ends` one by one, as a part."""
        # An escape and its replacement have the same length, so that `ends` stay valid.
        text, cleaned = yield from clean_in_bites(self._body[start : ends[-1]])
        pieces: list[bytes] = []
        at = 0
        for end in ends:
            pieces.append(text[at : end - start].strip(_WHITESPACE))
            at = end - start + 1
        if b"" in pieces:
            raise CannotSplit
        if self._guesses and (yield from self._take(b"[%b]" % text)):
            self.cleaned += cleaned
            return
        events: list[Any] = []
        for index in range(0, len(pieces), _PIECES_AT_ONCE):
            yield self._take_grown()
            events += [self._decode(piece) for piece in pieces[index : index + _PIECES_AT_ONCE]]
        self._add(Part(text, events, find_hazards(text), pieces), cleaned)

    def _decode(self, piece: bytes) -> Any:
        return decode_piece(piece, self._decoders)


def decode_piece(piece: bytes, decoders: Decoders) -> Any:
    """An event, or the Refusal of a piece that is not one."""
    if not piece.startswith(b"{"):
        return Refusal(RejectReason.NOT_AN_OBJECT, "an event must be a JSON object")
    try:
        return decoders.one.decode(piece)
    except msgspec.ValidationError as error:
        if decoders.spellings is None:
            return _refusal_of_field(error, decoders)
        return decode_respelled(piece, decoders, decoders.spellings)
    except UNREADABLE as error:
        return _refusal_of_text(error)


def decode_respelled(
    piece: bytes, decoders: Decoders, spellings: Spellings, beside: Mapping[str, Raw] | None = None
) -> Any:
    """An event with fields spelled differently, or with shared members from `beside` its batch."""
    try:
        text = respell(piece, spellings, beside)
        return text if isinstance(text, Refusal) else decoders.one.decode(text)
    except msgspec.ValidationError as error:
        return _refusal_of_field(error, decoders)
    except UNREADABLE as error:
        return _refusal_of_text(error)


def _refusal_of_text(error: Exception) -> Refusal:
    if isinstance(error, RecursionError):
        return Refusal(RejectReason.NESTED_TOO_DEEP, "the event is nested too deeply")
    # msgspec 0.23 raises DecodeError for it: "Invalid UTF-8 encoded string".
    is_not_utf8 = isinstance(error, UnicodeDecodeError) or "UTF-8" in str(error)
    return Refusal(RejectReason.INVALID_UTF8 if is_not_utf8 else RejectReason.MALFORMED_JSON, str(error))


def _refusal_of_field(error: msgspec.ValidationError, decoders: Decoders) -> Refusal:
    # msgspec ends its message with the place, as in: Expected `str`, got `int` - at `$.name`.
    *_, place, _ = ["", *str(error).rsplit("`", 2)]
    return Refusal(decoders.reason_of.get(place, RejectReason.INVALID_FIELD), str(error))


def check_count(count: int, max_events: int) -> None:
    """Raises PayloadRefused if there are too many events."""
    if count > max_events:
        detail = f"over {max_events} events, which is the maximum per request"
        raise PayloadRefused(RejectReason.TOO_MANY_EVENTS, detail)
