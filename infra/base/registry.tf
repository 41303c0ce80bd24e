# Where nodes pull the trainer image from.

resource "aws_ecr_repository" "this" {
  name                 = "draco-${var.name}"
  image_tag_mutability = "IMMUTABLE"
  force_delete         = true # images are built from the checkout; purging asks before

  image_scanning_configuration {
    scan_on_push = true
  }

  encryption_configuration {
    encryption_type = "KMS" # with the key that AWS keeps for ECR, which costs nothing
  }

  tags = { Name = "draco-${var.name}" }
}

resource "aws_ecr_lifecycle_policy" "this" {
  repository = aws_ecr_repository.this.name
  policy = jsonencode({
    rules = [{
      rulePriority = 1
      description  = "Keep the last 10 images"
      selection    = { tagStatus = "any", countType = "imageCountMoreThan", countNumber = 10 }
      action       = { type = "expire" }
    }]
  })
}
