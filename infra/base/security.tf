# Who may reach whom. Workers may lie, so they reach the head for MPI only, the file system, and not each other. How the
# operator reaches the head is a rule of the cluster root.

resource "aws_security_group" "head" {
  #checkov:skip=CKV2_AWS_5:The cluster root attaches it to its instances
  name        = "draco-${var.name}-head"
  description = "Head of the Draco cluster ${var.name}"
  vpc_id      = aws_vpc.this.id

  tags = { Name = "draco-${var.name}-head" }
}

resource "aws_security_group" "worker" {
  #checkov:skip=CKV2_AWS_5:The cluster root attaches it to its instances
  name        = "draco-${var.name}-worker"
  description = "Workers of the Draco cluster ${var.name}"
  vpc_id      = aws_vpc.this.id

  tags = { Name = "draco-${var.name}-worker" }
}

resource "aws_security_group" "file_system" {
  name        = "draco-${var.name}-file-system"
  description = "File system of the Draco cluster ${var.name}"
  vpc_id      = aws_vpc.this.id

  tags = { Name = "draco-${var.name}-file-system" }
}

locals {
  node_groups = { head = aws_security_group.head.id, worker = aws_security_group.worker.id }
  from_head = {
    ssh     = [22, 22]
    mpi-ssh = [2222, 2222] # sshd of the trainer image
    mpi     = [20000, 20999]
  }
}

resource "aws_vpc_security_group_ingress_rule" "head" {
  security_group_id            = aws_security_group.head.id
  description                  = "MPI from the workers"
  referenced_security_group_id = aws_security_group.worker.id
  ip_protocol                  = "tcp"
  from_port                    = 20000
  to_port                      = 20999

  tags = { Name = "draco-${var.name}-head-mpi" }
}

resource "aws_vpc_security_group_ingress_rule" "worker" {
  #checkov:skip=CKV_AWS_24:It lets in the head's group; the check only looks for addresses and finds none
  for_each = local.from_head

  security_group_id            = aws_security_group.worker.id
  description                  = "${each.key} from the head"
  referenced_security_group_id = aws_security_group.head.id
  ip_protocol                  = "tcp"
  from_port                    = each.value[0]
  to_port                      = each.value[1]

  tags = { Name = "draco-${var.name}-worker-${each.key}" }
}

resource "aws_vpc_security_group_ingress_rule" "file_system" {
  for_each = local.node_groups

  security_group_id            = aws_security_group.file_system.id
  description                  = "NFS from the ${each.key} group"
  referenced_security_group_id = each.value
  ip_protocol                  = "tcp"
  from_port                    = 2049
  to_port                      = 2049

  tags = { Name = "draco-${var.name}-file-system-${each.key}" }
}

# Nodes fetch packages, images and data, from addresses that nobody can list.
resource "aws_vpc_security_group_egress_rule" "node" {
  for_each = local.node_groups

  security_group_id = each.value
  description       = "Anywhere"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"

  tags = { Name = "draco-${var.name}-${each.key}-out" }
}
