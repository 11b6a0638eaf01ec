"""Commands of `segros`, one module per group; each imports what is heavy only when it runs."""
