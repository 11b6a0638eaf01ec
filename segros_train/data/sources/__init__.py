"""Sources of training data, opened by the words of a `DataCard`."""
