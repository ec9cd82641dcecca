"""What a run's finished stages say, as tables for people."""
