"""`make snippet-soak`: scripted lives of browsers in a bad world, and what became of their events."""
