"""The dialogue service: keys, limits, routing, sessions and truthful streams before any engines."""
