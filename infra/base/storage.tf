# The shared file system, which outlives clusters: /data for everyone to read, /runs for the head alone.

locals {
  trainer = 10001 # user and group of the ranks in the trainer image
}

resource "aws_efs_file_system" "this" {
  #checkov:skip=CKV_AWS_184:It has the key that AWS keeps for EFS; one of our own would cost more than small data
  creation_token  = "draco-${var.name}"
  encrypted       = true
  throughput_mode = "elastic" # bursting ends at 50 KiB/s per GiB, which small data never outgrows

  tags = { Name = "draco-${var.name}" }
}

resource "aws_efs_mount_target" "zone" {
  for_each = aws_subnet.zone

  file_system_id  = aws_efs_file_system.this.id
  subnet_id       = each.value.id
  security_groups = [aws_security_group.file_system.id]
}

resource "aws_efs_access_point" "folder" {
  for_each = toset(["data", "runs"])

  file_system_id = aws_efs_file_system.this.id

  posix_user {
    uid = local.trainer
    gid = local.trainer
  }

  root_directory {
    path = "/${each.key}"

    creation_info {
      owner_uid   = local.trainer
      owner_gid   = local.trainer
      permissions = "0755"
    }
  }

  tags = { Name = "draco-${var.name}-${each.key}" }
}

# Without a policy anyone who reaches a mount target may write. With this one, only who is named here may mount at all.
resource "aws_efs_file_system_policy" "this" {
  file_system_id = aws_efs_file_system.this.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "OnlyOverTLS"
        Effect    = "Deny"
        Principal = { AWS = "*" }
        Action    = "*"
        Resource  = aws_efs_file_system.this.arn
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
      {
        Sid       = "HeadWrites"
        Effect    = "Allow"
        Principal = { AWS = aws_iam_role.node["head"].arn }
        Action    = ["elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"]
        Resource  = aws_efs_file_system.this.arn
        Condition = {
          StringEquals = {
            "elasticfilesystem:AccessPointArn" = [for point in aws_efs_access_point.folder : point.arn]
          }
        }
      },
      {
        Sid       = "WorkersReadData"
        Effect    = "Allow"
        Principal = { AWS = aws_iam_role.node["worker"].arn }
        Action    = ["elasticfilesystem:ClientMount"]
        Resource  = aws_efs_file_system.this.arn
        Condition = {
          StringEquals = { "elasticfilesystem:AccessPointArn" = aws_efs_access_point.folder["data"].arn }
        }
      },
    ]
  })
}
