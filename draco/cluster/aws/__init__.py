"""Clusters on AWS: CLUSTER=aws. Terraform (infra/) creates resources; boto3 reads prices and states, and cleans up."""
