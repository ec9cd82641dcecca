"""The few numbers per document that decide: scanned once into key files, read in passes."""
