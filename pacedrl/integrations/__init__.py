"""The method in other libraries' trainers."""
