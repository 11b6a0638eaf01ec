"""Show-o."""
