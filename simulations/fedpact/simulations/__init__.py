"""Both sides in one process, or on Ray; the demo; the command line."""
