variable "name" {
  type        = string
  description = "The cluster's name; everything is called draco-<name>."

  # The registry takes no hyphen at the end, and no two in a row.
  validation {
    condition     = can(regex("^[a-z][a-z0-9]*(-[a-z0-9]+)*$", var.name)) && length(var.name) <= 30
    error_message = "name is ${var.name}; it must be 1 to 30 lower-case letters, digits and single hyphens between them, a letter first."
  }
}

variable "owner" {
  type        = string
  description = "Who answers for the costs; the tag Owner."

  validation {
    condition     = can(regex("^[0-9A-Za-z_+=,.@-]{1,64}$", var.owner))
    error_message = "owner is ${var.owner}; it must be 1 to 64 letters, digits and _+=,.@-."
  }
}

variable "region" {
  type        = string
  description = "The region that everything lies in."

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region is ${var.region}; it must be a region's name, such as us-west-2."
  }
}

variable "vpc_cidr" {
  type        = string
  description = "Addresses of the network; each zone's subnet gets a sixteenth of them."
  default     = "10.87.0.0/16"

  validation {
    condition     = can(cidrnetmask(var.vpc_cidr)) && can(regex("/(16|17|18|19|20)$", var.vpc_cidr))
    error_message = "vpc_cidr is ${var.vpc_cidr}; it must be an IPv4 network from /16 to /20."
  }
}

variable "ssm" {
  type        = bool
  description = "Let Session Manager in beside ssh. Its policy also lets nodes read the account's SSM parameters."
  default     = false
}

variable "log_retention_days" {
  type        = number
  description = "How long the log group keeps what the head writes."
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365], var.log_retention_days)
    error_message = "log_retention_days is ${var.log_retention_days}; it must be 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180 or 365."
  }
}
