"""Mesh, sharding rules, several processes."""
