"""What a step of the engine costs, and what follows from it: TTFT, TPOT, throughput, chunk size."""
