"""What an event is, and how a raw one becomes a row of COPY text.

Pure: clock, address and limits come in as values.
"""
