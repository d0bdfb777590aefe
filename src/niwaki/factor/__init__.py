"""The cost algebra: a resource is a sum of small tables over few decisions, and everything about it follows from that."""
