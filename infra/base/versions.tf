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
  max_retries = 10

  default_tags {
    tags = {
      Project = "draco"
      Cluster = var.name
      Owner   = var.owner
      Root    = "base"
    }
  }
}
