"""Events: their fields and limits, and the steps from a raw event to a row of COPY text.

Pure: clock, address and limits are passed in as values.
"""
