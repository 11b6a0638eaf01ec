"""T2I-CompBench: attributes, relations and numbers, by a judge."""
