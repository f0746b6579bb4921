"""What the pods say: engine state, placement reports, measured attainment."""
