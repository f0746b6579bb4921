"""What the sidecar's benchmarks share: an upstream, a load generator, and the ways between them."""
