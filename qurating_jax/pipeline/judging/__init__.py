"""Commands about a run of judgments: its state, its answers, its audit, batches, the mock server."""
