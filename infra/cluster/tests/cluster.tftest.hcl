# What must hold of a cluster, whatever becomes of its files. Nothing is asked of AWS.

mock_provider "aws" {
  mock_data "aws_subnet" {
    defaults = { id = "subnet-01", vpc_id = "vpc-01", availability_zone = "us-west-2b" }
  }
  override_resource {
    target = aws_launch_template.node["head"]
    values = { id = "lt-01" }
  }
  override_resource {
    target = aws_launch_template.node["worker"]
    values = { id = "lt-02" }
  }
}

variables {
  name                     = "dev"
  owner                    = "me"
  region                   = "us-west-2"
  zone                     = "us-west-2b"
  vpc_id                   = "vpc-01"
  subnet_id                = "subnet-01"
  head_security_group_id   = "sg-01"
  worker_security_group_id = "sg-02"
  head_profile             = "draco-dev-head"
  worker_profile           = "draco-dev-worker"
  ssh_cidr                 = "203.0.113.7/32"
  ssh_public_key           = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIH2mYp8zE0vYqfLhK7yqkW0T5o8h9s3c6cG0m1m9a0aB me"
  ami                      = "ami-0123456789abcdef0"
  head_type                = "m6i.large"
  worker_type              = "m6i.xlarge"
  workers                  = 2
  expires_at               = "2026-11-23T14:00:00Z"
  image                    = "registry.invalid/draco-dev@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
}

run "nodes" {
  command = apply

  assert {
    condition     = keys(output.nodes) == ["head", "worker-01", "worker-02"] && output.zone == "us-west-2b"
    error_message = "a head and the workers, by name"
  }
  assert {
    condition     = [for node in output.nodes : node.market] == ["on-demand", "spot", "spot"]
    error_message = "workers are spot, the head is not"
  }
  assert {
    condition     = [for node in local.instances : node.instance_type] == ["m6i.large", "m6i.xlarge", "m6i.xlarge"]
    error_message = "each of its type"
  }
  assert {
    condition = (
      aws_instance.head.iam_instance_profile == "draco-dev-head" &&
      alltrue([for worker in aws_instance.worker : worker.iam_instance_profile == "draco-dev-worker"])
    )
    error_message = "each with its role's profile: a worker with the head's could end the cluster"
  }
  assert {
    condition = (
      aws_instance.head.vpc_security_group_ids == toset(["sg-01"]) &&
      alltrue([for worker in aws_instance.worker : worker.vpc_security_group_ids == toset(["sg-02"])])
    )
    error_message = "each in its role's group and no other"
  }
  assert {
    condition     = alltrue([for node in local.instances : node.key_name == "draco-dev"])
    error_message = "the operator's key, which is called draco-<name>"
  }
  assert {
    condition = alltrue([
      for node in local.instances : node.subnet_id == "subnet-01" && node.associate_public_ip_address
    ])
    error_message = "in the base's subnet, with public addresses"
  }
  assert {
    condition     = length(aws_placement_group.near) == 0
    error_message = "not bound together"
  }

  # How they are bought.
  assert {
    condition = alltrue([
      for worker in aws_instance.worker :
      worker.instance_market_options[0].market_type == "spot" &&
      worker.instance_market_options[0].spot_options[0].spot_instance_type == "one-time" &&
      worker.instance_market_options[0].spot_options[0].instance_interruption_behavior == "terminate"
    ])
    error_message = "one-time and terminated; a persistent request would start instances that nobody knows of"
  }
  assert {
    condition     = length(aws_instance.head.instance_market_options) == 0
    error_message = "the head is on demand"
  }

  # What they are called.
  assert {
    condition = aws_instance.head.tags == tomap({
      Name = "draco-dev-head", Node = "head", Role = "head", Image = var.image
    })
    error_message = "the head's tags"
  }
  assert {
    condition = aws_instance.worker["worker-02"].tags == tomap({
      Name = "draco-dev-worker-02", Node = "worker-02", Role = "worker", Image = var.image
    })
    error_message = "a worker's tags"
  }
  assert {
    condition = alltrue([
      for name, node in local.instances : node.volume_tags == tomap({
        Name      = "draco-dev-${name}", Project = "draco", Cluster = "dev", Owner = "me", Root = "cluster",
        ExpiresAt = "2026-11-23T14:00:00Z"
      })
    ])
    error_message = "disks have all tags"
  }

  # How they are closed.
  assert {
    condition     = alltrue([for node in local.instances : node.root_block_device[0].encrypted])
    error_message = "disks are encrypted"
  }
  assert {
    condition = alltrue([
      for node in local.instances :
      node.root_block_device[0].volume_type == "gp3" && node.root_block_device[0].volume_size == 30
    ])
    error_message = "disks are gp3, of volume_gb"
  }
  assert {
    condition = alltrue([
      for node in local.instances :
      node.metadata_options[0].http_tokens == "required" && node.metadata_options[0].http_put_response_hop_limit == 1
    ])
    error_message = "the metadata service answers with tokens only, one hop far"
  }
  assert {
    condition = (
      aws_vpc_security_group_ingress_rule.ssh.security_group_id == "sg-01" &&
      aws_vpc_security_group_ingress_rule.ssh.cidr_ipv4 == "203.0.113.7/32" &&
      aws_vpc_security_group_ingress_rule.ssh.ip_protocol == "tcp" &&
      aws_vpc_security_group_ingress_rule.ssh.from_port == 22 &&
      aws_vpc_security_group_ingress_rule.ssh.to_port == 22
    )
    error_message = "the operator reaches the head by ssh"
  }
  assert {
    condition = (
      length(aws_security_group.efa) == 0 && length(aws_vpc_security_group_ingress_rule.efa) == 0 &&
      alltrue([for template in aws_launch_template.node : length(template.network_interfaces) == 0])
    )
    error_message = "without EFA there is no other rule, and workers do not reach each other"
  }

  # How they end.
  assert {
    condition = (
      aws_instance.head.instance_initiated_shutdown_behavior == "terminate" &&
      alltrue([for worker in aws_instance.worker : worker.launch_template[0].id == "lt-02"]) &&
      aws_launch_template.node["worker"].instance_initiated_shutdown_behavior == "terminate"
    )
    error_message = "to shut down is to be terminated"
  }
  assert {
    condition = alltrue([
      for node in local.instances : node.metadata_options[0].instance_metadata_tags == "enabled"
    ])
    error_message = "a node sees its tag ExpiresAt"
  }
  assert {
    condition = alltrue([
      for role, text in local.user_data : strcontains(text, join("\n", [
        "ROLE=${role}", "CLUSTER=dev", "REGION=us-west-2", "IDLE_MINUTES=60", "EXPIRES_AT=2026-11-23T14:00:00Z",
      ]))
    ])
    error_message = "user data says what a node must know to end itself"
  }
  assert {
    condition     = alltrue([for text in local.user_data : strcontains(text, file("files/watch.sh"))])
    error_message = "user data brings draco-watch"
  }
  assert {
    condition     = alltrue([for text in local.user_data : strcontains(text, file("files/notice.sh"))])
    error_message = "user data brings draco-notice"
  }
  assert {
    condition     = alltrue([for text in local.user_data : length(text) < 16384])
    error_message = "user data is no longer than EC2 takes"
  }
}

run "twelve_workers_near_each_other_for_a_price" {
  command = plan
  variables {
    workers         = 12
    max_spot_price  = "0.05"
    placement_group = true
  }

  assert {
    condition     = length(aws_instance.worker) == 12
    error_message = "twelve workers"
  }
  assert {
    condition = alltrue([
      for worker in aws_instance.worker : worker.instance_market_options[0].spot_options[0].max_price == "0.05"
    ])
    error_message = "every worker has the maximum price"
  }
  assert {
    condition     = aws_placement_group.near[0].strategy == "cluster"
    error_message = "the placement group is a cluster"
  }
  assert {
    condition     = alltrue([for node in local.instances : node.placement_group == "draco-dev"])
    error_message = "all nodes are in the placement group"
  }
}

run "on_demand_workers_have_no_spot_block" {
  command = plan
  variables { market = "on-demand" }

  assert {
    condition     = alltrue([for worker in aws_instance.worker : length(worker.instance_market_options) == 0])
    error_message = "no spot block"
  }
  assert {
    condition = alltrue([
      for worker in aws_instance.worker :
      worker.instance_initiated_shutdown_behavior == "terminate" && length(worker.launch_template) == 0
    ])
    error_message = "to shut down is to be terminated, without a template"
  }
  assert {
    condition = alltrue([
      for each in terraform_data.worker : each.input == { market = "on-demand", type = "m6i.xlarge" }
    ])
    error_message = "a change of market or type replaces workers"
  }
}

run "one_worker_on_demand_leaves_the_others_alone" {
  command = apply
  variables { on_demand_workers = ["worker-02"] }

  assert {
    condition     = [for node in output.nodes : node.market] == ["on-demand", "spot", "on-demand"]
    error_message = "worker-02 alone"
  }
  assert {
    condition     = [for worker in aws_instance.worker : length(worker.instance_market_options)] == [1, 0]
    error_message = "no spot block"
  }
  assert {
    condition     = [for worker in aws_instance.worker : length(worker.launch_template)] == [1, 0]
    error_message = "no template"
  }
  assert {
    condition     = aws_instance.worker["worker-01"].id == run.nodes.nodes["worker-01"].id
    error_message = "worker-01 stays"
  }
  assert {
    condition     = aws_instance.worker["worker-02"].id != run.nodes.nodes["worker-02"].id
    error_message = "worker-02 is made anew"
  }
}

run "efa" {
  command = apply
  variables { efa = true }

  assert {
    condition = alltrue([
      for rule in concat(aws_vpc_security_group_ingress_rule.efa, aws_vpc_security_group_egress_rule.efa) :
      rule.security_group_id == aws_security_group.efa[0].id &&
      rule.referenced_security_group_id == aws_security_group.efa[0].id && rule.cidr_ipv4 == null
    ])
    error_message = "what EFA needs is open among the nodes, and to nobody else"
  }
  assert {
    condition = alltrue([
      for role, group in local.groups :
      aws_launch_template.node[role].network_interfaces[0].security_groups == toset([group, aws_security_group.efa[0].id])
    ])
    error_message = "each adapter is in its role's group and in the one for EFA"
  }
  assert {
    condition = alltrue([
      for template in aws_launch_template.node :
      template.network_interfaces[0].interface_type == "efa" &&
      template.network_interfaces[0].subnet_id == "subnet-01" &&
      template.network_interfaces[0].associate_public_ip_address == "true"
    ])
    error_message = "adapters are EFA, in the base's subnet, with public addresses"
  }
  assert {
    condition     = [for node in local.instances : node.launch_template[0].id] == ["lt-01", "lt-02", "lt-02"]
    error_message = "every node has its role's adapter"
  }
}

run "gpu_workers_in_a_capacity_block" {
  command = apply
  variables {
    market                  = "capacity-block"
    capacity_reservation_id = "cr-0123456789abcdef0"
    worker_type             = "p5.48xlarge"
    worker_ami              = "ami-0fedcba9876543210"
    volume_gb               = 120
  }

  assert {
    condition     = [for node in output.nodes : node.market] == ["on-demand", "capacity-block", "capacity-block"]
    error_message = "workers are in the block, the head is not"
  }
  assert {
    condition     = keys(aws_launch_template.node) == ["worker"]
    error_message = "a template for workers alone"
  }
  assert {
    condition = (
      aws_launch_template.node["worker"].instance_market_options[0].market_type == "capacity-block" &&
      aws_launch_template.node["worker"].capacity_reservation_specification[0].capacity_reservation_target[0].capacity_reservation_id == "cr-0123456789abcdef0" &&
      aws_launch_template.node["worker"].instance_initiated_shutdown_behavior == "terminate"
    )
    error_message = "the template names the block, and that to shut down is to be terminated"
  }
  assert {
    condition = alltrue([
      for worker in aws_instance.worker :
      length(worker.instance_market_options) == 0 && worker.launch_template[0].id == "lt-02"
    ])
    error_message = "the instance leaves its market to the template"
  }
  assert {
    condition = [for node in local.instances : node.ami] == [
      "ami-0123456789abcdef0", "ami-0fedcba9876543210", "ami-0fedcba9876543210",
    ]
    error_message = "workers have a machine image of their own"
  }
}

run "refuses_a_block_without_its_market_and_the_market_without_a_block" {
  command = plan
  variables { capacity_reservation_id = "cr-0123456789abcdef0" }
  expect_failures = [var.capacity_reservation_id]
}

run "refuses_a_block_by_another_name" {
  command = plan
  variables {
    market                  = "capacity-block"
    capacity_reservation_id = "block"
  }
  expect_failures = [var.capacity_reservation_id]
}

run "refuses_a_subnet_in_another_zone" {
  command = plan
  variables { zone = "us-west-2a" }
  expect_failures = [data.aws_subnet.nodes]
}

run "refuses_ssh_from_everywhere" {
  command = plan
  variables { ssh_cidr = "0.0.0.0/0" }
  expect_failures = [var.ssh_cidr]
}

run "refuses_too_little" {
  command = plan
  variables {
    name                     = ""
    owner                    = ""
    region                   = "us"
    vpc_id                   = "dev"
    subnet_id                = "vpc-01"
    head_security_group_id   = "head"
    worker_security_group_id = ""
    ssh_cidr                 = "203.0.113.7"
    ssh_public_key           = ""
    ami                      = "al2023"
    head_type                = "large"
    worker_type              = "m6i.*"
    workers                  = 0
    max_spot_price           = "0"
    expires_at               = "2026-11-23T14:00:00"
    idle_minutes             = -1
    volume_gb                = 8
    image                    = "draco:latest"
    max_retries              = 0
    market                   = ""
    on_demand_workers        = ["head"]
    worker_ami               = "al2023"
  }
  expect_failures = [
    var.name, var.owner, var.region, var.vpc_id, var.subnet_id, var.head_security_group_id,
    var.worker_security_group_id, var.ssh_cidr, var.ssh_public_key, var.ami, var.head_type, var.worker_type,
    var.workers, var.max_spot_price, var.expires_at, var.idle_minutes, var.volume_gb, var.image, var.max_retries,
    var.market, var.on_demand_workers, var.worker_ami,
  ]
}

run "refuses_too_much" {
  command = plan
  variables {
    name           = "a234567890123456789012345678901"
    zone           = "us-east-1a" # of another region
    ssh_cidr       = "128.0.0.0/1"
    ssh_public_key = "-----BEGIN OPENSSH PRIVATE KEY-----"
    workers        = 201
    market         = "persistent"
    max_spot_price = "cheap"
    expires_at     = "2026-11-23T14:00:00+01:00"
    idle_minutes   = 1.5
    volume_gb      = 16001
    image          = "draco@sha256:0123456789abcdef"
    max_retries    = 26
  }
  expect_failures = [
    var.name, var.zone, var.ssh_cidr, var.ssh_public_key, var.workers, var.market, var.max_spot_price, var.expires_at,
    var.idle_minutes, var.volume_gb, var.image, var.max_retries,
  ]
}

run "refuses_what_only_looks_right" {
  command = plan
  variables {
    name       = "dev-" # the registry would not take it
    zone       = "us-west-2"
    workers    = 2.5
    ssh_cidr   = "2001:db8::/32"
    expires_at = "2026-13-23T14:00:00Z"
  }
  expect_failures = [var.name, var.zone, var.workers, var.ssh_cidr, var.expires_at]
}
