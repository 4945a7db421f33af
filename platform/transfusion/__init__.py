"""The open platform for Transfusion models: one transformer for text and images, end to end."""
