"""From declarations to results: catalog, plan, preflight, runner, and what they write and read."""
