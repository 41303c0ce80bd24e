# One public subnet in each zone. Nodes have public addresses and no NAT gateway: that would cost more than a small
# cluster, also while none is up.

data "aws_availability_zones" "usable" {
  #checkov:skip=CKV_AWS_394:A new zone gets a subnet of its own and changes no other
  state = "available"

  filter {
    name   = "zone-type"
    values = ["availability-zone"]
  }
}

locals {
  # A subnet's addresses follow from its zone's letter, not from its place in the list, so that they stay when AWS adds
  # or withdraws a zone.
  letters = split("", "abcdefghijklmnop")
  subnets = {
    for zone in data.aws_availability_zones.usable.names :
    zone => cidrsubnet(var.vpc_cidr, 4, index(local.letters, substr(zone, -1, 1)))
  }
}

resource "aws_vpc" "this" {
  #checkov:skip=CKV2_AWS_11:Flow logs of training traffic would cost more than they tell
  cidr_block           = var.vpc_cidr
  enable_dns_support   = true
  enable_dns_hostnames = true # mount targets are found by name

  tags = { Name = "draco-${var.name}" }
}

# The group that AWS makes with a network: without rules, and so of no use.
resource "aws_default_security_group" "closed" {
  vpc_id = aws_vpc.this.id

  tags = { Name = "draco-${var.name}-closed" }
}

resource "aws_subnet" "zone" {
  for_each = local.subnets

  vpc_id            = aws_vpc.this.id
  availability_zone = each.key
  cidr_block        = each.value

  tags = { Name = "draco-${var.name}-${each.key}" }
}

resource "aws_internet_gateway" "this" {
  vpc_id = aws_vpc.this.id

  tags = { Name = "draco-${var.name}" }
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.this.id

  tags = { Name = "draco-${var.name}" }
}

resource "aws_route" "internet" {
  route_table_id         = aws_route_table.public.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this.id
}

resource "aws_route_table_association" "zone" {
  for_each = aws_subnet.zone

  subnet_id      = each.value.id
  route_table_id = aws_route_table.public.id
}
