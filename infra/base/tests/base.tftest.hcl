# What must hold of the base, whatever becomes of its files. Nothing is asked of AWS.

mock_provider "aws" {
  mock_data "aws_availability_zones" {
    defaults = { names = ["us-west-2a", "us-west-2b", "us-west-2d"] }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws", dns_suffix = "amazonaws.com" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_resource "aws_efs_file_system" {
    defaults = { arn = "arn:aws:elasticfilesystem:us-west-2:123456789012:file-system/fs-01234567" }
  }
  mock_resource "aws_ecr_repository" {
    defaults = { arn = "arn:aws:ecr:us-west-2:123456789012:repository/draco-dev" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:us-west-2:123456789012:log-group:/draco/dev" }
  }
  override_resource {
    target = aws_iam_role.node["head"]
    values = { arn = "arn:aws:iam::123456789012:role/draco-dev-head" }
  }
  override_resource {
    target = aws_iam_role.node["worker"]
    values = { arn = "arn:aws:iam::123456789012:role/draco-dev-worker" }
  }
  override_resource {
    target = aws_efs_access_point.folder["data"]
    values = { arn = "arn:data", id = "fsap-data" }
  }
  override_resource {
    target = aws_efs_access_point.folder["runs"]
    values = { arn = "arn:runs", id = "fsap-runs" }
  }
  override_resource {
    target = aws_security_group.head
    values = { id = "sg-head" }
  }
  override_resource {
    target = aws_security_group.worker
    values = { id = "sg-worker" }
  }
  override_resource {
    target = aws_security_group.file_system
    values = { id = "sg-files" }
  }
}

variables {
  name   = "dev"
  owner  = "me"
  region = "us-west-2"
}

run "base" {
  command = apply

  assert {
    condition = output.subnet_cidrs == {
      us-west-2a = "10.87.0.0/20", us-west-2b = "10.87.16.0/20", us-west-2d = "10.87.48.0/20"
    }
    error_message = "every zone has a subnet, by its letter"
  }
  assert {
    condition     = keys(aws_efs_mount_target.zone) == keys(output.subnet_ids)
    error_message = "every subnet has a mount target"
  }
  assert {
    condition     = alltrue([for target in aws_efs_mount_target.zone : target.security_groups == toset(["sg-files"])])
    error_message = "mount targets let in who the file system's group lets in"
  }
  assert {
    condition = toset([
      for rule in concat(
        [aws_vpc_security_group_ingress_rule.head],
        values(aws_vpc_security_group_ingress_rule.worker),
        values(aws_vpc_security_group_ingress_rule.file_system),
      ) :
      format(
        "%s -> %s %s %d-%d", rule.referenced_security_group_id, rule.security_group_id, rule.ip_protocol,
        rule.from_port, rule.to_port
      )
      ]) == toset([
      "sg-worker -> sg-head tcp 20000-20999",
      "sg-head -> sg-worker tcp 22-22",
      "sg-head -> sg-worker tcp 2222-2222",
      "sg-head -> sg-worker tcp 20000-20999",
      "sg-head -> sg-files tcp 2049-2049",
      "sg-worker -> sg-files tcp 2049-2049",
    ])
    error_message = "these rules and no others: workers do not reach each other"
  }
  assert {
    condition = alltrue([
      for rule in concat(
        [aws_vpc_security_group_ingress_rule.head],
        values(aws_vpc_security_group_ingress_rule.worker),
        values(aws_vpc_security_group_ingress_rule.file_system),
      ) : rule.cidr_ipv4 == null && rule.cidr_ipv6 == null && rule.prefix_list_id == null
    ])
    error_message = "no rule lets addresses in"
  }
  assert {
    condition     = aws_efs_file_system.this.encrypted && aws_efs_file_system.this.throughput_mode == "elastic"
    error_message = "the file system is encrypted, and its speed does not hang on its size"
  }
  assert {
    condition = (
      aws_efs_access_point.folder["data"].root_directory[0].path == "/data" &&
      aws_efs_access_point.folder["runs"].root_directory[0].path == "/runs"
    )
    error_message = "access points lead into /data and /runs"
  }
  assert {
    condition = alltrue([
      for point in aws_efs_access_point.folder :
      point.posix_user[0].uid == 10001 && point.posix_user[0].gid == 10001 &&
      point.root_directory[0].creation_info[0].owner_uid == 10001 &&
      point.root_directory[0].creation_info[0].owner_gid == 10001 &&
      point.root_directory[0].creation_info[0].permissions == "0755"
    ])
    error_message = "the trainer owns what lies behind an access point"
  }
  assert {
    condition = {
      for statement in jsondecode(aws_efs_file_system_policy.this.policy).Statement :
      statement.Principal.AWS => [statement.Action, statement.Condition.StringEquals]
      if statement.Effect == "Allow"
      } == {
      "arn:aws:iam::123456789012:role/draco-dev-head" = [
        ["elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"],
        { "elasticfilesystem:AccessPointArn" = ["arn:data", "arn:runs"] },
      ]
      "arn:aws:iam::123456789012:role/draco-dev-worker" = [
        ["elasticfilesystem:ClientMount"],
        { "elasticfilesystem:AccessPointArn" = "arn:data" },
      ]
    }
    error_message = "the head alone writes and sees runs; workers read data; nobody else mounts"
  }
  assert {
    condition = [
      for statement in jsondecode(aws_efs_file_system_policy.this.policy).Statement :
      [statement.Principal, statement.Action, statement.Condition] if statement.Effect == "Deny"
    ] == [[{ AWS = "*" }, "*", { Bool = { "aws:SecureTransport" = "false" } }]]
    error_message = "nothing is mounted without TLS"
  }
  assert {
    condition     = aws_ecr_repository.this.name == "draco-dev"
    error_message = "the repository is draco-<name>"
  }
  assert {
    condition     = aws_ecr_repository.this.image_tag_mutability == "IMMUTABLE"
    error_message = "a tag of an image never changes its meaning"
  }
  assert {
    condition = (
      aws_ecr_repository.this.image_scanning_configuration[0].scan_on_push &&
      aws_ecr_repository.this.encryption_configuration[0].encryption_type == "KMS"
    )
    error_message = "images are scanned and encrypted"
  }
  assert {
    condition     = jsondecode(aws_ecr_lifecycle_policy.this.policy).rules[0].selection.countNumber == 10
    error_message = "ten images are kept"
  }
  assert {
    condition     = output.head_profile == "draco-dev-head" && output.worker_profile == "draco-dev-worker"
    error_message = "profiles are named draco-<name>-<role>"
  }
  assert {
    condition     = length(aws_iam_role_policy.pull) == 2 && aws_iam_role_policy.head.role == "draco-dev-head"
    error_message = "both roles pull; the other policy is the head's"
  }
  assert {
    condition = alltrue([
      for policy in aws_iam_role_policy.pull :
      [for statement in jsondecode(policy.policy).Statement : [statement.Action, statement.Resource]] == [
        ["ecr:GetAuthorizationToken", "*"],
        [
          ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
          "arn:aws:ecr:us-west-2:123456789012:repository/draco-dev",
        ],
      ]
    ])
    error_message = "a worker pulls from this one repository and may do nothing else"
  }
  assert {
    condition = jsondecode(aws_iam_role_policy.head.policy).Statement == [
      { Effect = "Allow", Action = "ec2:DescribeInstances", Resource = "*" },
      {
        Effect    = "Allow"
        Action    = "ec2:TerminateInstances"
        Resource  = "arn:aws:ec2:us-west-2:123456789012:instance/*"
        Condition = { StringEquals = { "aws:ResourceTag/Project" = "draco", "aws:ResourceTag/Cluster" = "dev" } }
      },
      {
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
        Resource = "arn:aws:logs:us-west-2:123456789012:log-group:/draco/dev:*"
      },
    ]
    error_message = "the head terminates this cluster's instances only, and writes to its log group only"
  }
  assert {
    condition = jsondecode(aws_iam_role.interrupt.assume_role_policy).Statement == [{
      Effect    = "Allow"
      Principal = { Service = "fis.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = {
        StringEquals = { "aws:SourceAccount" = "123456789012" }
        ArnLike      = { "aws:SourceArn" = "arn:aws:fis:us-west-2:123456789012:experiment/*" }
      }
    }]
    error_message = "the role that interrupts is for experiments of this account alone"
  }
  assert {
    condition = jsondecode(aws_iam_role_policy.interrupt.policy).Statement == [
      { Effect = "Allow", Action = "ec2:DescribeInstances", Resource = "*" },
      {
        Effect    = "Allow"
        Action    = "ec2:SendSpotInstanceInterruptions"
        Resource  = "arn:aws:ec2:us-west-2:123456789012:instance/*"
        Condition = { StringEquals = { "aws:ResourceTag/Project" = "draco", "aws:ResourceTag/Cluster" = "dev" } }
      },
    ]
    error_message = "it interrupts this cluster's instances only"
  }
  assert {
    condition     = aws_iam_role.interrupt.name == "draco-dev-interrupt" && aws_iam_role_policy.interrupt.role == "draco-dev-interrupt"
    error_message = "it is called draco-<name>-interrupt, and no node has it"
  }
  assert {
    condition     = length(aws_iam_role_policy_attachment.ssm) == 0
    error_message = "Session Manager is off unless asked for"
  }
}

run "session_manager" {
  command = apply
  variables { ssm = true }

  assert {
    condition = alltrue([
      for role in ["head", "worker"] :
      aws_iam_role_policy_attachment.ssm[role].role == "draco-dev-${role}" &&
      aws_iam_role_policy_attachment.ssm[role].policy_arn == "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
    ])
    error_message = "both roles get the policy of Session Manager"
  }
}

run "refuses_too_little" {
  command = plan
  variables {
    name               = ""
    owner              = ""
    region             = "us"
    vpc_cidr           = "10.87.0.0"
    log_retention_days = 0
  }
  expect_failures = [var.name, var.owner, var.region, var.vpc_cidr, var.log_retention_days]
}

run "refuses_too_much" {
  command = plan
  variables {
    name               = "a234567890123456789012345678901"
    owner              = "me\nyou"
    region             = "us-west-2a"
    vpc_cidr           = "10.87.0.0/21"
    log_retention_days = 31
  }
  expect_failures = [var.name, var.owner, var.region, var.vpc_cidr, var.log_retention_days]
}

run "refuses_what_only_looks_right" {
  command = plan
  variables {
    name     = "dev-" # the registry would not take it
    vpc_cidr = "fd00::/16"
  }
  expect_failures = [var.name, var.vpc_cidr]
}
