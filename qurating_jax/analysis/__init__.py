"""What ratings do to a corpus: tables from rated documents, pure functions over arrays."""
