"""What Draco has left in an account: found by tags, and removed where Terraform no longer knows of it."""
