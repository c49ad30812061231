"""Cryptography libraries."""

ROWS = ()
