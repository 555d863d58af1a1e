"""What clients of each kind send, translated to raw events. One module a dialect; the others are what they share."""
