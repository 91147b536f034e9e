"""Using sinks: caches, quantisation, skipped heads."""
