"""From keys to copied rows: exact token-budget selection."""
