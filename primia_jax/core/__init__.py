"""Lowest room of the house: files on disk and names that come from outside."""
