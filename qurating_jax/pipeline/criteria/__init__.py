"""Commands about criteria."""
