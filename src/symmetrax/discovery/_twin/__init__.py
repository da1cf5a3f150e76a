"""From a small copy of a model to the full one: names matched by pattern, lengths solved for."""
