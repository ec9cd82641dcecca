"""Documents to token rows: encoded in parts, laid out by arithmetic, written shard by shard by any process."""
