"""Clusters on AWS: CLUSTER=aws. Terraform owns what is created (infra/), boto3 looks, counts and cleans up after it."""
