"""Text to batches: corpora, packing, a resumable pipeline, synthetic tasks."""
