"""Campaigns: many runs under one heading, each resumable, with tables and a page at the end."""
