"""Where requests begin and end in what a client sends, followed next to the parser, which does not say. Pure."""

from __future__ import annotations

from typing import Final

_END: Final = b"\r\n\r\n"


class Framing:
    """Follows the requests of a connection. `between`: whether the parser is between two requests, with nothing of
    the next one. In case of doubt it is not, until the connection ends."""

    __slots__ = ("_begun", "_left", "between")

    def __init__(self) -> None:
        self.between = True
        # The head of the next request, so far; what is to come of a body, None if that is not known.
        self._begun = b""
        self._left: int | None = 0

    def lose(self) -> None:
        self.between, self._left, self._begun = False, None, b""

    def parsed(self, received: bytes, found: int, length: int | None, complete: bool) -> None:
        """The parser was given these bytes and found as many requests, the last with a body of this length, None if
        it has no length. `complete`: whether all bodies are, according to the parser."""
        if self._left is None or not (received or found):
            return
        self.between = False
        if self._left:
            left = self._left - len(received)
        else:
            begun = self._begun + received
            if not found:
                self._begun = begun
                return
            self._begun = b""
            head = begun.find(_END)
            # The parser skips empty lines before a request.
            if found > 1 or length is None or head < 0 or begun[0] <= ord(" "):
                self.lose()
                return
            left = head + len(_END) + length - len(begun)
        if left < 0 or (left == 0 and not complete):
            self.lose()
        else:
            self.between, self._left = left == 0, left
