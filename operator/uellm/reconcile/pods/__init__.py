"""What pods report: readiness, failures, placement, configuration, attainment."""
