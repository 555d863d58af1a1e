"""What the service offers besides taking events, a folder each. Features do not import each other."""
