variable "assembly" {
  type        = string
  default     = "../cdk.out"
  description = "The folder that `cdk synth` wrote: the template, the zips, and the list of both."
}

variable "stack_name" {
  type        = string
  default     = "Carillon"
  description = "The name of the CloudFormation stack, and the prefix of what it names."

  validation {
    condition     = can(regex("^[A-Za-z][A-Za-z0-9-]{0,25}$", var.stack_name))
    error_message = "Begin with a letter, go on with letters, digits and hyphens, and end before the 27th."
  }
}

variable "mail_from" {
  type        = string
  description = "The address that emails come from. SES must have verified it or its domain in this Region."
}

variable "environment" {
  type        = string
  default     = "prod"
  description = "dev, staging or prod: part of every API key; prod refuses back ends that only pretend."

  validation {
    condition     = contains(["dev", "staging", "prod"], var.environment)
    error_message = "Choose dev, staging or prod."
  }
}

variable "architecture" {
  type        = string
  default     = "x86_64"
  description = "x86_64 or arm64: the processor that the zips were built for."

  validation {
    condition     = contains(["x86_64", "arm64"], var.architecture)
    error_message = "Choose x86_64 or arm64."
  }
}

variable "platform_key_sha256" {
  type        = string
  default     = ""
  description = "SHA-256 of the platform's key, 64 hex digits. Without it /v1/admin stays closed."
}

variable "oidc_issuer" {
  type        = string
  default     = ""
  description = "The issuer of OIDC tokens, from https:// on. Empty: API keys alone."
}

variable "oidc_audience" {
  type        = string
  default     = ""
  description = "The audience of OIDC tokens; required with oidc_issuer."
}

variable "alarm_email" {
  type        = string
  default     = ""
  description = "Who is mailed when an alarm rings."
}

variable "parameters" {
  type        = map(string)
  default     = {}
  description = "Further parameters of the template by name, such as DatabaseHost where it was synthesized with database=external."
}

variable "tags" {
  type        = map(string)
  default     = {}
  description = "Tags of everything that is made."
}
