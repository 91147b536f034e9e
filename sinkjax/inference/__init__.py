"""Using sinks: caches, generation, quantisation, skipped heads."""
