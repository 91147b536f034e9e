"""The Flax transformer."""
