# Who may reach whom is the base's business, but for two things that differ from cluster to cluster: where the operator
# comes from, and what EFA needs.

resource "aws_vpc_security_group_ingress_rule" "ssh" {
  security_group_id = var.head_security_group_id
  description       = "ssh from the operator"
  cidr_ipv4         = var.ssh_cidr
  ip_protocol       = "tcp"
  from_port         = 22
  to_port           = 22

  tags = { Name = "draco-${var.name}-ssh" }
}

# EFA passes nothing unless a group that both ends are in lets everything in from itself and out to itself. So with EFA
# workers reach each other and the head on every port; keys still keep them out.
resource "aws_security_group" "efa" {
  count = var.efa ? 1 : 0

  name        = "draco-${var.name}-efa"
  description = "All nodes of the Draco cluster ${var.name}, among themselves"
  vpc_id      = var.vpc_id

  tags = { Name = "draco-${var.name}-efa" }
}

resource "aws_vpc_security_group_ingress_rule" "efa" {
  count = var.efa ? 1 : 0

  security_group_id            = aws_security_group.efa[0].id
  description                  = "Everything from the other nodes"
  referenced_security_group_id = aws_security_group.efa[0].id
  ip_protocol                  = "-1"

  tags = { Name = "draco-${var.name}-efa-in" }
}

resource "aws_vpc_security_group_egress_rule" "efa" {
  count = var.efa ? 1 : 0

  security_group_id            = aws_security_group.efa[0].id
  description                  = "Everything to the other nodes"
  referenced_security_group_id = aws_security_group.efa[0].id
  ip_protocol                  = "-1"

  tags = { Name = "draco-${var.name}-efa-out" }
}
