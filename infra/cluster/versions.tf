terraform {
  required_version = ">= 1.10"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
}

provider "aws" {
  region      = var.region
  max_retries = var.max_retries

  default_tags {
    tags = local.tags
  }
}

locals {
  tags = {
    Project   = "draco"
    Cluster   = var.name
    Owner     = var.owner
    Root      = "cluster"
    ExpiresAt = var.expires_at
  }
}
