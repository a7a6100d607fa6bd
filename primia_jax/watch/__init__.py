"""Looking at a run: while it goes on, or from another process by the files that it leaves."""
