"""What the figures mean that are looked up by name: the HELP lines of their metrics."""

from __future__ import annotations

from collections.abc import Mapping

SCHEDULER: Mapping[str, str] = {
    "queued_bytes": "Bytes of the bodies that wait in the queue.",
    "demoted": "Requests in the queue that cannot all be on time any more: best effort, the shortest first.",
    "gave_way": "Requests that gave way to others since the order was made.",
    "shed": "Requests refused under measured pressure since the start.",
    "failed_open": "1 after the policy failed: everything passes in order of arrival.",
    "unfilled_tokens": "Prompt tokens that the engine has and whose first token has not come.",
    "prefill_token_seconds": "Engine model: seconds of one more prompt token.",
    "decode_step_seconds": "Engine model: seconds of a step without prompts, at the present load.",
    "token_gap_seconds": "Measured: mean time between two tokens of an answer.",
    "step_error_share": "Mean error of the engine model: predicted against measured step time, over the measured one.",
    "prefill_factor": "Measured over assumed time of prompts; 1: the engine model was right to begin with.",
    "decode_factor": "Measured over assumed time of the rest of a step; 1: the engine model was right to begin with.",
    "request_seconds": "Measured: what a request takes to its first token besides the engine's steps.",
    "gate_haste": "By how much sooner the gate opens than by the engine model, after it had opened too late.",
    "length_share": "Of predicted lengths, what KV admission reckons with; below 1: answers prove far shorter.",
    "pacing_multiplier": "By which the TPOT guard changes the pace of prompts, learnt from measured gaps.",
    "prefix_trust": "Of the prefix-cache hits that are foreseen, the share that the engine's counters confirm.",
}

_LENGTHS: Mapping[str, str] = {
    "mean_absolute_error_tokens": "Mean of the tokens by which predicted medians were wrong, of the last requests.",
    "coverage_p80": "Share of answers that were no longer than their predicted P80; .8 is right.",
    "coverage_p90": "Share of answers that were no longer than their predicted P90; .9 is right.",
    "tau": "Kendall's tau-b of predicted and real lengths: 1 is the right order, 0 none.",
}

PREDICTOR: Mapping[str, str] = {
    **_LENGTHS,
    "requests": "Requests that the other figures are of: the last ones, 1000 at most.",
    "bucket_share": "Share of answers in the predicted power-of-two bucket of lengths.",
    "tau_within_source": "Kendall's tau-b among the requests of one source, weighted by their number.",
    "tau_source_median": "Kendall's tau-b that the median of each source's last answers would have reached.",
}

LEARNED: Mapping[str, str] = {
    **_LENGTHS,
    "running": "1 while the learned model's process runs.",
    "starts": "How often its process was started.",
    "trainings": "How often it was trained.",
    "trained_rows": "Requests that it was trained on last.",
    "training_seconds": "Seconds that the last training took.",
    "resident_bytes": "Memory of its process.",
    "answers": "Predictions that came from it.",
    "answers_used": "Predictions of its that were in time and believed.",
    "answer_seconds": "Seconds from asking it until its answer.",
}
