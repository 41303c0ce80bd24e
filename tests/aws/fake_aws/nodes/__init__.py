"""Instances as real nodes: namespaces of this machine, its network between them, and what EC2 provides around them."""
