"""The method inside other trainers."""
