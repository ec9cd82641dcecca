"""The pages of a report, a module each: evidence in, blocks out."""
