"""The parts of bench/on_gpu.py."""
