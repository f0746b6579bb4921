"""What pods report: readiness, placement, how requests fared."""
