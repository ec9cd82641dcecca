"""What runs: one file per stage, from config to manifest."""
