"""The leftovers of Draco in an account: found by tags, and removed where Terraform no longer knows of them."""
