"""Text to batches: corpora, packing, a pipeline that resumes, made-up tasks."""
