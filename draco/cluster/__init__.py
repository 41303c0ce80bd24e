"""The operator's side of a cluster: nodes, their inventory, their configuration by Ansible, and their state."""
