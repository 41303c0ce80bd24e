output "vpc_id" {
  description = "The network."
  value       = aws_vpc.this.id
}

output "subnet_ids" {
  description = "Zone -> its subnet."
  value       = { for zone, subnet in aws_subnet.zone : zone => subnet.id }
}

output "subnet_cidrs" {
  description = "Zone -> its subnet's addresses, which MPI is told to use."
  value       = local.subnets
}

output "head_security_group_id" {
  description = "Security group of the head."
  value       = aws_security_group.head.id
}

output "worker_security_group_id" {
  description = "Security group of the workers."
  value       = aws_security_group.worker.id
}

output "head_profile" {
  description = "Instance profile of the head, by name."
  value       = aws_iam_instance_profile.node["head"].name
}

output "worker_profile" {
  description = "Instance profile of the workers, by name."
  value       = aws_iam_instance_profile.node["worker"].name
}

output "file_system_id" {
  description = "The shared file system."
  value       = aws_efs_file_system.this.id
}

output "data_access_point_id" {
  description = "The way into /data."
  value       = aws_efs_access_point.folder["data"].id
}

output "runs_access_point_id" {
  description = "The way into /runs, for the head only."
  value       = aws_efs_access_point.folder["runs"].id
}

output "repository_url" {
  description = "Where the trainer image is pushed to and pulled from."
  value       = aws_ecr_repository.this.repository_url
}

output "repository_name" {
  description = "The repository's name within the registry."
  value       = aws_ecr_repository.this.name
}

output "log_group" {
  description = "Where the head may write logs."
  value       = aws_cloudwatch_log_group.this.name
}
