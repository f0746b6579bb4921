"""What a service's state means: conditions and status. Pure."""
