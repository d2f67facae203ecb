"""The engine: a whole network traced once, laid out in lanes, and run with one call."""
