# Uploads what `cdk synth` wrote and lets CloudFormation apply it. Nothing of Carillon is described here:
# the template is the same that `cdk deploy` applies.

locals {
  # The list that CDK writes beside the template: each file, and its key, which is a hash of its content.
  assets = jsondecode(file("${var.assembly}/Carillon.assets.json")).files
  files = {
    for asset in values(local.assets) :
    one(values(asset.destinations)).objectKey => "${var.assembly}/${asset.source.path}"
  }
  template_key = one([for key, path in local.files : key if endswith(path, ".template.json")])
}

resource "aws_s3_bucket" "artifacts" {
  #checkov:skip=CKV_AWS_18:Read by CloudFormation at a deployment and by nobody else; CloudTrail tells who wrote
  #checkov:skip=CKV_AWS_144:What it holds can be built again
  #checkov:skip=CKV2_AWS_62:Nobody waits for a new zip
  bucket_prefix = "${lower(var.stack_name)}-artifacts-"
  tags          = var.tags
}

resource "aws_s3_bucket_public_access_block" "artifacts" {
  bucket                  = aws_s3_bucket.artifacts.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_versioning" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm = "aws:kms"
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  rule {
    id     = "leftovers"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }

    # A release's keys are new ones, so the ones before go when Terraform removes them; a roll-back
    # finds them here for this long.
    noncurrent_version_expiration {
      noncurrent_days = 90
    }
  }
}

resource "aws_s3_bucket_policy" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id
  policy = data.aws_iam_policy_document.tls_only.json
}

data "aws_iam_policy_document" "tls_only" {
  statement {
    sid       = "TlsOnly"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.artifacts.arn, "${aws_s3_bucket.artifacts.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_object" "file" {
  for_each = local.files

  bucket      = aws_s3_bucket.artifacts.id
  key         = each.key
  source      = each.value
  source_hash = filesha256(each.value)

  depends_on = [
    aws_s3_bucket_policy.artifacts,
    aws_s3_bucket_public_access_block.artifacts,
    aws_s3_bucket_server_side_encryption_configuration.artifacts,
    aws_s3_bucket_versioning.artifacts,
  ]

  lifecycle {
    # The functions of the release before need their zips until the stack has gone on.
    create_before_destroy = true
  }
}

resource "aws_cloudformation_stack" "carillon" {
  #checkov:skip=CKV_AWS_124:The stack brings its own alarms and their topic
  name         = var.stack_name
  template_url = "https://${aws_s3_bucket.artifacts.bucket_regional_domain_name}/${local.template_key}"
  capabilities = ["CAPABILITY_IAM"]
  tags         = var.tags

  parameters = merge(
    {
      ArtifactBucket    = aws_s3_bucket.artifacts.id
      Environment       = var.environment
      Architecture      = var.architecture
      MailFrom          = var.mail_from
      PlatformKeySha256 = var.platform_key_sha256
      OidcIssuer        = var.oidc_issuer
      OidcAudience      = var.oidc_audience
      AlarmEmail        = var.alarm_email
    },
    var.parameters,
  )

  timeouts {
    create = "60m"
    update = "60m"
    delete = "60m"
  }

  depends_on = [aws_s3_object.file]

  lifecycle {
    # Deleting the stack deletes the database up to its last snapshot.
    prevent_destroy = true
  }
}
