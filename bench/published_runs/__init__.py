"""Published measurements of vLLM beside what the cost model predicts of them: rows, fit, report."""
