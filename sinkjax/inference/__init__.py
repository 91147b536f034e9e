"""Using a model: caches, generation."""
