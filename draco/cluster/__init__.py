"""What `make cluster-up` and its companions do: nodes, their inventory, their configuration by Ansible, their state."""
