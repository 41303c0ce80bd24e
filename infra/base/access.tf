# What nodes may ask of AWS: pull the image and, the head only, end the cluster and write its log. Access to the file
# system is its own policy, in storage.tf. And what AWS's own Fault Injection Service may do to them.

data "aws_partition" "current" {}

data "aws_caller_identity" "current" {}

resource "aws_iam_role" "node" {
  for_each = toset(["head", "worker"])

  name        = "draco-${var.name}-${each.key}"
  description = "Role of a ${each.key} of the Draco cluster ${var.name}"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.${data.aws_partition.current.dns_suffix}" }
      Action    = "sts:AssumeRole"
    }]
  })

  tags = { Region = var.region } # of what it is for: roles themselves are in every region
}

resource "aws_iam_instance_profile" "node" {
  for_each = aws_iam_role.node

  name = each.value.name
  role = each.value.name

  tags = { Region = var.region }
}

resource "aws_iam_role_policy" "pull" {
  for_each = aws_iam_role.node

  name = "pull"
  role = each.value.name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect   = "Allow"
        Action   = "ecr:GetAuthorizationToken"
        Resource = "*" # it knows no other
      },
      {
        Effect   = "Allow"
        Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        Resource = aws_ecr_repository.this.arn
      },
    ]
  })
}

resource "aws_iam_role_policy" "head" {
  name = "end-and-log"
  role = aws_iam_role.node["head"].name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect   = "Allow"
        Action   = "ec2:DescribeInstances"
        Resource = "*" # it knows no other
      },
      {
        Effect = "Allow"
        Action = "ec2:TerminateInstances"
        Resource = join(":", [
          "arn", data.aws_partition.current.partition, "ec2", var.region,
          data.aws_caller_identity.current.account_id, "instance/*",
        ])
        Condition = {
          StringEquals = { "aws:ResourceTag/Project" = "draco", "aws:ResourceTag/Cluster" = var.name }
        }
      },
      {
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
        Resource = "${aws_cloudwatch_log_group.this.arn}:*"
      },
    ]
  })
}

resource "aws_iam_role_policy_attachment" "ssm" {
  for_each = toset(var.ssm ? ["head", "worker"] : [])

  role       = aws_iam_role.node[each.key].name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

# Assumed by experiments of this account alone, and good for this cluster's instances alone: `make interrupt`.
resource "aws_iam_role" "interrupt" {
  name        = "draco-${var.name}-interrupt"
  description = "Role in which AWS interrupts spot instances of the Draco cluster ${var.name} when told to"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "fis.${data.aws_partition.current.dns_suffix}" }
      Action    = "sts:AssumeRole"
      Condition = {
        StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.current.account_id }
        ArnLike = {
          "aws:SourceArn" = join(":", [
            "arn", data.aws_partition.current.partition, "fis", var.region,
            data.aws_caller_identity.current.account_id, "experiment/*",
          ])
        }
      }
    }]
  })

  tags = { Region = var.region }
}

resource "aws_iam_role_policy" "interrupt" {
  name = "interrupt"
  role = aws_iam_role.interrupt.name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect   = "Allow"
        Action   = "ec2:DescribeInstances"
        Resource = "*" # it knows no other
      },
      {
        Effect = "Allow"
        Action = "ec2:SendSpotInstanceInterruptions"
        Resource = join(":", [
          "arn", data.aws_partition.current.partition, "ec2", var.region,
          data.aws_caller_identity.current.account_id, "instance/*",
        ])
        Condition = {
          StringEquals = { "aws:ResourceTag/Project" = "draco", "aws:ResourceTag/Cluster" = var.name }
        }
      },
    ]
  })
}

resource "aws_cloudwatch_log_group" "this" {
  #checkov:skip=CKV_AWS_158:CloudWatch encrypts it; a key of our own would cost more than the log
  #checkov:skip=CKV_AWS_338:What the head logs is of no use a year later; log_retention_days says how long
  name              = "/draco/${var.name}"
  retention_in_days = var.log_retention_days

  tags = { Name = "draco-${var.name}" }
}
