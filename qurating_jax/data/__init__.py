"""What is read and written: documents, judgments, tokens, batches."""
