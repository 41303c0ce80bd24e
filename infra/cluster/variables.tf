variable "name" {
  type        = string
  description = "The cluster's name; everything is called draco-<name>."

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
  description = "The base's region."

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region is ${var.region}; it must be a region's name, such as us-west-2."
  }
}

variable "max_retries" {
  type        = number
  description = "How often a request is repeated, without capacity too: 3 gives up in half a minute, 25 in an hour."
  default     = 3

  validation {
    condition     = var.max_retries >= 1 && var.max_retries <= 25 && floor(var.max_retries) == var.max_retries
    error_message = "max_retries is ${var.max_retries}; it must be a whole number from 1 to 25."
  }
}

# Where: outputs of the base.

variable "zone" {
  type        = string
  description = "The availability zone of all nodes."

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9][a-z]$", var.zone)) && startswith(var.zone, var.region)
    error_message = "zone is ${var.zone}; it must be a zone of ${var.region}, such as ${var.region}a."
  }
}

variable "vpc_id" {
  type        = string
  description = "The base's network."

  validation {
    condition     = can(regex("^vpc-[0-9a-f]+$", var.vpc_id))
    error_message = "vpc_id is ${var.vpc_id}; it must be the id of a network, vpc-..."
  }
}

variable "subnet_id" {
  type        = string
  description = "The base's subnet in the zone."

  validation {
    condition     = can(regex("^subnet-[0-9a-f]+$", var.subnet_id))
    error_message = "subnet_id is ${var.subnet_id}; it must be the id of a subnet, subnet-..."
  }
}

variable "head_security_group_id" {
  type        = string
  description = "The base's security group for the head."

  validation {
    condition     = can(regex("^sg-[0-9a-f]+$", var.head_security_group_id))
    error_message = "head_security_group_id is ${var.head_security_group_id}; it must be the id of a security group, sg-..."
  }
}

variable "worker_security_group_id" {
  type        = string
  description = "The base's security group for the workers."

  validation {
    condition     = can(regex("^sg-[0-9a-f]+$", var.worker_security_group_id))
    error_message = "worker_security_group_id is ${var.worker_security_group_id}; it must be the id of a security group, sg-..."
  }
}

variable "head_profile" {
  type        = string
  description = "The base's instance profile for the head, by name."
}

variable "worker_profile" {
  type        = string
  description = "The base's instance profile for the workers, by name."
}

# Who may log in.

variable "ssh_cidr" {
  type        = string
  description = "Who may reach the head by ssh; nothing else is open, and this never to everyone."

  validation {
    condition     = can(cidrnetmask(var.ssh_cidr)) && try(tonumber(split("/", var.ssh_cidr)[1]), 0) >= 8
    error_message = "ssh_cidr is ${var.ssh_cidr}; it must be an IPv4 network of yours, /8 or smaller, such as 203.0.113.7/32."
  }
}

variable "ssh_public_key" {
  type        = string
  description = "The operator's public key, in OpenSSH's format."

  validation {
    condition     = can(regex("^ssh-(ed25519|rsa) [0-9A-Za-z+/=]+( [^\n]*)?\n?$", var.ssh_public_key))
    error_message = "ssh_public_key is no public key of one line; it must begin with ssh-ed25519 or ssh-rsa."
  }
}

# What.

variable "ami" {
  type        = string
  description = "Image of the machines, the head's at least: an Amazon Linux 2023. Running nodes keep theirs."

  validation {
    condition     = can(regex("^ami-[0-9a-f]+$", var.ami))
    error_message = "ami is ${var.ami}; it must be the id of a machine image, ami-..."
  }
}

variable "worker_ami" {
  type        = string
  description = "Image of the workers' machines; null: the head's."
  default     = null

  validation {
    condition     = var.worker_ami == null || can(regex("^ami-[0-9a-f]+$", var.worker_ami))
    error_message = "worker_ami is ${coalesce(var.worker_ami, "null")}; it must be the id of a machine image, ami-..., or null."
  }
}

variable "head_type" {
  type        = string
  description = "Instance type of the head."

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]*\\.[a-z0-9-]+$", var.head_type))
    error_message = "head_type is ${var.head_type}; it must be an instance type, such as m6i.large."
  }
}

variable "worker_type" {
  type        = string
  description = "Instance type of the workers, one for all: mixed types are stragglers."

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]*\\.[a-z0-9-]+$", var.worker_type))
    error_message = "worker_type is ${var.worker_type}; it must be an instance type, such as m6i.xlarge."
  }
}

variable "workers" {
  type        = number
  description = "Worker nodes; the head is extra."

  validation {
    condition     = var.workers >= 1 && var.workers <= 200 && floor(var.workers) == var.workers
    error_message = "workers is ${var.workers}; it must be a whole number from 1 to 200."
  }
}

variable "market" {
  type        = string
  description = "How workers are bought: spot, on-demand or capacity-block. The head is always on-demand."
  default     = "spot"

  validation {
    condition     = contains(["spot", "on-demand", "capacity-block"], var.market)
    error_message = "market is ${var.market}; it must be spot, on-demand or capacity-block."
  }
}

variable "capacity_reservation_id" {
  type        = string
  description = "The capacity block that workers are started in; null: none."
  default     = null

  validation {
    condition     = var.capacity_reservation_id == null || can(regex("^cr-[0-9a-f]+$", var.capacity_reservation_id))
    error_message = "capacity_reservation_id is ${coalesce(var.capacity_reservation_id, "null")}; it must be the id of a reservation, cr-..., or null."
  }
  validation {
    condition     = (var.capacity_reservation_id != null) == (var.market == "capacity-block")
    error_message = "capacity_reservation_id is ${coalesce(var.capacity_reservation_id, "null")} and market ${var.market}; a capacity block has both, and nothing else has one."
  }
}

variable "on_demand_workers" {
  type        = set(string)
  description = "Workers that are bought on demand whatever the market: the spot market had none to replace them with."
  default     = []

  validation {
    condition     = alltrue([for worker in var.on_demand_workers : can(regex("^worker-[0-9]{2,3}$", worker))])
    error_message = "on_demand_workers is ${join(", ", var.on_demand_workers)}; it must be workers' names, such as worker-02."
  }
}

variable "max_spot_price" {
  type        = string
  description = "Dollars per hour and worker above which AWS takes a spot worker away; null: the on-demand price."
  default     = null

  validation {
    condition     = var.max_spot_price == null || try(tonumber(var.max_spot_price) > 0, false)
    error_message = "max_spot_price is ${coalesce(var.max_spot_price, "null")}; it must be a number above 0, or null."
  }
}

# Not refused when it is past: a cluster that has expired must still be destroyed.
variable "expires_at" {
  type        = string
  description = "When every node ends itself, in UTC. The tag says it, so that a later apply can put it off."

  validation {
    condition = (
      can(regex("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$", var.expires_at)) &&
      can(timeadd(var.expires_at, "0s"))
    )
    error_message = "expires_at is ${var.expires_at}; it must be a time in UTC such as 2026-11-23T14:00:00Z."
  }
}

variable "idle_minutes" {
  type        = number
  description = "Without a run or an ssh session for so long, the head ends the cluster; 0: never. For new nodes."
  default     = 60

  validation {
    condition     = var.idle_minutes >= 0 && var.idle_minutes <= 10000 && floor(var.idle_minutes) == var.idle_minutes
    error_message = "idle_minutes is ${var.idle_minutes}; it must be a whole number from 0 to 10000."
  }
}

variable "volume_gb" {
  type        = number
  description = "Size of each node's disk, in GiB."
  default     = 30

  validation {
    condition     = var.volume_gb >= 20 && var.volume_gb <= 16000 && floor(var.volume_gb) == var.volume_gb
    error_message = "volume_gb is ${var.volume_gb}; it must be a whole number from 20 to 16000."
  }
}

variable "image" {
  type        = string
  description = "The trainer image by digest; nodes carry it as the tag Image."

  validation {
    condition     = can(regex("^[0-9A-Za-z._:/-]+@sha256:[0-9a-f]{64}$", var.image))
    error_message = "image is ${var.image}; it must be <repository>@sha256:<64 hexadecimal digits>."
  }
}

variable "placement_group" {
  type        = bool
  description = "Nodes close together: faster between them, and likelier short of capacity."
  default     = false
}

variable "efa" {
  type        = bool
  description = "Elastic Fabric Adapters, if both types have them. Workers then reach each other and the head on every port."
  default     = false
}
