output "api_url" {
  value       = aws_cloudformation_stack.carillon.outputs["ApiUrl"]
  description = "Where the API is."
}

output "outputs" {
  value       = aws_cloudformation_stack.carillon.outputs
  description = "All outputs of the stack, by name."
}
