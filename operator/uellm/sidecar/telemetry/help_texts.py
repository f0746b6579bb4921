"""HELP texts of the figures that are read by name."""

from __future__ import annotations

from collections.abc import Mapping

COUNTERS = frozenset(("shed", "gave_way", "starts", "trainings", "answers", "answers_used", "answer_seconds"))
"""Figures that only grow."""

SCHEDULER: Mapping[str, str] = {
    "queued_bytes": "Bytes of the bodies that wait in the queue.",
    "demoted": "Queued requests that are served best effort, shortest first, because not all can be on time.",
    "gave_way": "Requests that gave way to others since the order was created.",
    "shed": "Requests refused under measured pressure since the start.",
    "failed_open": "1 after the policy failed: requests are sent in order of arrival.",
    "unfilled_tokens": "Prompt tokens in the engine of requests without a first token yet.",
    "prefill_token_seconds": "Engine model: seconds for each further prompt token.",
    "decode_step_seconds": "Engine model: seconds of a step without prompts, at the current load.",
    "token_gap_seconds": "Measured: mean time between two tokens of an answer.",
    "step_error_share": "Mean error of the engine model: predicted against measured step time, over the measured one.",
    "prefill_factor": "Measured over assumed time of prompts; 1: the engine model without factors was right.",
    "decode_factor": "Measured over assumed time of the rest of a step; 1: the engine model without factors was right.",
    "request_seconds": "Measured: time to the first token of a request that is spent outside the engine's steps.",
    "gate_speedup": "How many times sooner the gate opens than the engine model says, after it opened too late.",
    "length_share": "Share of the predicted lengths that KV admission counts; below 1: answers are far shorter.",
    "tokens_an_event": "Tokens in an event of a stream, by the engine's counts; above 1 with speculation.",
    "kv_use": "Share of the estimated prompt tokens that KV admission counts; below 1: the cache holds far less.",
    "pacing_multiplier": "Factor by which the TPOT guard changes the pace of prompts, learned from measured gaps.",
    "prefix_trust": "Share of the predicted prefix-cache hits that the engine's counters confirm.",
}

_LENGTHS: Mapping[str, str] = {
    "mean_absolute_error_tokens": "Mean absolute error of the predicted medians in tokens, over the last requests.",
    "coverage_p80": "Share of answers that were no longer than their predicted P80; .8 is right.",
    "coverage_p90": "Share of answers that were no longer than their predicted P90; .9 is right.",
    "tau": "Kendall's tau-b of predicted and real lengths: 1 is the right order, 0 none.",
}

PREDICTOR: Mapping[str, str] = {
    **_LENGTHS,
    "requests": "Requests that the other figures cover: the last ones, 1000 at most.",
    "bucket_share": "Share of answers in the predicted power-of-two bucket of lengths.",
    "tau_within_source": "Kendall's tau-b among the requests of one source, weighted by their number.",
    "tau_source_median": "Kendall's tau-b if each source's median were the prediction.",
}

LEARNED: Mapping[str, str] = {
    **_LENGTHS,
    "running": "1 while the learned model's process runs.",
    "starts": "Starts of its process.",
    "trainings": "Trainings.",
    "trained_rows": "Requests in the last training.",
    "training_seconds": "Duration of the last training in seconds.",
    "resident_bytes": "Resident memory of its process.",
    "answers": "Predictions that it answered.",
    "answers_used": "Predictions of the learned model that were in time and were used.",
    "answer_seconds": "Processor seconds that it spent on answers.",
}
