"""The number of replicas of services with `spec.autoscaling`: from what their pods report to a decision."""
