# A head, on demand, and workers, by default one-time spot instances. Each ends itself (files/watch.sh), and for an
# instance to shut down is to be terminated. Worker names are stable: what replaces a lost worker-02 is worker-02.

data "aws_subnet" "nodes" {
  id = var.subnet_id

  lifecycle {
    postcondition {
      condition     = self.availability_zone == var.zone && self.vpc_id == var.vpc_id
      error_message = "subnet_id is ${var.subnet_id}, of ${self.vpc_id} in ${self.availability_zone}; it must be ${var.vpc_id}'s subnet in ${var.zone}."
    }
  }
}

locals {
  groups  = { head = var.head_security_group_id, worker = var.worker_security_group_id }
  workers = toset([for number in range(1, var.workers + 1) : format("worker-%02d", number)])
  market = {
    for worker in local.workers : worker => contains(var.on_demand_workers, worker) ? "on-demand" : var.market
  }

  user_data = {
    for role in keys(local.groups) : role => templatefile("${path.module}/user_data.sh.tftpl", {
      role         = role
      cluster      = var.name
      region       = var.region
      idle_minutes = var.idle_minutes
      expires_at   = var.expires_at
      watch        = file("${path.module}/files/watch.sh")
      notice       = file("${path.module}/files/notice.sh")
    })
  }
}

resource "aws_key_pair" "operator" {
  key_name   = "draco-${var.name}"
  public_key = var.ssh_public_key
}

resource "aws_placement_group" "near" {
  count = var.placement_group ? 1 : 0

  name     = "draco-${var.name}"
  strategy = "cluster"
}

# What only a template can say when an instance is made: an adapter and a public address of its own in one go, and, of a
# spot instance, what shutting down does (asked on the instance, the provider would ask once more afterwards, and AWS
# takes such questions about spot instances amiss). A capacity block is here because the provider reads the market of
# spot instances only: on the instance, the next apply would make every worker anew.
resource "aws_launch_template" "node" {
  #checkov:skip=CKV_AWS_88:As for the instances that it is for
  for_each = { for role, group in local.groups : role => group if var.efa || (role == "worker" && var.market != "on-demand") }

  name                                 = "draco-${var.name}-${each.key}"
  description                          = "A ${each.key} of the Draco cluster ${var.name}"
  instance_initiated_shutdown_behavior = "terminate"

  dynamic "network_interfaces" {
    for_each = var.efa ? [each.value] : []

    content {
      interface_type              = "efa"
      associate_public_ip_address = true
      delete_on_termination       = true
      subnet_id                   = data.aws_subnet.nodes.id
      security_groups             = [network_interfaces.value, aws_security_group.efa[0].id]
    }
  }

  dynamic "instance_market_options" {
    for_each = each.key == "worker" && var.market == "capacity-block" ? ["capacity-block"] : []

    content {
      market_type = "capacity-block"
    }
  }

  dynamic "capacity_reservation_specification" {
    for_each = each.key == "worker" && var.market == "capacity-block" ? [var.capacity_reservation_id] : []

    content {
      capacity_reservation_target {
        capacity_reservation_id = capacity_reservation_specification.value
      }
    }
  }

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "enabled"
  }

  tags = { Name = "draco-${var.name}-${each.key}" }
}

# A change of this makes new workers. The provider alone would not notice that the spot block is gone, and would stop an
# instance to change its type, which one-time spot instances do not let it do.
resource "terraform_data" "worker" {
  for_each = local.market

  input = { market = each.value, type = var.worker_type }
}

resource "aws_instance" "head" {
  #checkov:skip=CKV_AWS_88:The operator reaches it by ssh from ssh_cidr, and there is no NAT gateway
  #checkov:skip=CKV_AWS_126:Minutes are detailed enough for nodes that watch themselves
  #checkov:skip=CKV_AWS_135:Types of today are EBS-optimised anyway, and older ones refuse the setting
  ami                                  = var.ami
  instance_type                        = var.head_type
  iam_instance_profile                 = var.head_profile
  instance_initiated_shutdown_behavior = "terminate"
  key_name                             = aws_key_pair.operator.key_name
  placement_group                      = one(aws_placement_group.near[*].name)
  user_data                            = local.user_data["head"]
  subnet_id                            = var.efa ? null : data.aws_subnet.nodes.id
  vpc_security_group_ids               = var.efa ? null : [var.head_security_group_id]
  associate_public_ip_address          = var.efa ? null : true

  dynamic "launch_template" {
    for_each = var.efa ? [aws_launch_template.node["head"]] : []

    content {
      id      = launch_template.value.id
      version = "$Latest" # by number, a template whose tags change would replace its instances
    }
  }

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1 # containers with a network of their own do not reach it
    instance_metadata_tags      = "enabled"
  }

  root_block_device {
    encrypted   = true
    volume_type = "gp3"
    volume_size = var.volume_gb
  }

  # All of them: the provider adds its default tags to a volume, but takes off those that change.
  volume_tags = merge(local.tags, { Name = "draco-${var.name}-head" })

  tags = {
    Name  = "draco-${var.name}-head"
    Node  = "head"
    Role  = "head"
    Image = var.image
  }

  lifecycle {
    ignore_changes = [ami, user_data] # a newer machine image or setting is no reason to lose a running node
  }
}

resource "aws_instance" "worker" {
  #checkov:skip=CKV_AWS_88:It pulls its image without a NAT gateway; no rule lets anyone but the head in
  #checkov:skip=CKV_AWS_126:Minutes are detailed enough for nodes that watch themselves
  #checkov:skip=CKV_AWS_135:Types of today are EBS-optimised anyway, and older ones refuse the setting
  for_each = local.workers

  ami                                  = coalesce(var.worker_ami, var.ami)
  instance_type                        = var.worker_type
  iam_instance_profile                 = var.worker_profile
  instance_initiated_shutdown_behavior = local.market[each.key] == "on-demand" ? "terminate" : null # else the template says so
  key_name                             = aws_key_pair.operator.key_name
  placement_group                      = one(aws_placement_group.near[*].name)
  user_data                            = local.user_data["worker"]
  subnet_id                            = var.efa ? null : data.aws_subnet.nodes.id
  vpc_security_group_ids               = var.efa ? null : [var.worker_security_group_id]
  associate_public_ip_address          = var.efa ? null : true

  dynamic "launch_template" {
    for_each = var.efa || local.market[each.key] != "on-demand" ? [aws_launch_template.node["worker"]] : []

    content {
      id      = launch_template.value.id
      version = "$Latest"
    }
  }

  # Never persistent: such a request starts instances anew after they were destroyed.
  dynamic "instance_market_options" {
    for_each = local.market[each.key] == "spot" ? ["spot"] : []

    content {
      market_type = "spot"

      spot_options {
        spot_instance_type             = "one-time"
        instance_interruption_behavior = "terminate"
        max_price                      = var.max_spot_price
      }
    }
  }

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "enabled"
  }

  root_block_device {
    encrypted   = true
    volume_type = "gp3"
    volume_size = var.volume_gb
  }

  volume_tags = merge(local.tags, { Name = "draco-${var.name}-${each.key}" })

  tags = {
    Name  = "draco-${var.name}-${each.key}"
    Node  = each.key
    Role  = "worker"
    Image = var.image
  }

  lifecycle {
    ignore_changes       = [ami, user_data]
    replace_triggered_by = [terraform_data.worker[each.key]]
  }
}
