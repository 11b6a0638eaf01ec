"""Leaderboards, reports and comparisons, laid out for pages and terminals."""
