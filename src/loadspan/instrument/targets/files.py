"""Plain file reads."""

ROWS = ()
