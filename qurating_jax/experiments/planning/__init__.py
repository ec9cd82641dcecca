"""What a graph comes to before it runs: amounts, work, rates, hours, bytes."""
