"""What is counted and logged: metrics, attainment, access log, spans."""
