"""How often the screen changes; apart from all else, since the command line names it before it loads a UI."""

INTERVAL_S = 0.25
"""The server sends at most four frames a second."""
LEAST_INTERVAL_S = 0.1
MOST_INTERVAL_S = 10.0
