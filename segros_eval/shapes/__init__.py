"""The embedded world read back: its detector and its judge."""
