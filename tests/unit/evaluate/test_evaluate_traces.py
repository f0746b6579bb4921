from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from uellm.errors import BadInput
from uellm.evaluate.traces import TraceRequest, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
SERVEGEN = """arrival_s,client,input_tokens,output_tokens,reason_ratio
0.0,45,862,1081,0.8862
1.5,54,188,368,0.8104
"""
VTC = """arrival_s,client,prompt_tokens,output_tokens,fcfs_ttft_s,fcfs_e2e_s
0.25,lora-13,13,199,1.18,9.4
"""
MOONCAKE = """{"timestamp": 0, "input_length": 600, "output_length": 6, "hash_ids": [7, 8]}
{"timestamp": 1500, "input_length": 28, "output_length": 4, "hash_ids": [9]}
"""


def written(tmp_path: Path, text: str, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_azure_writes_dates_with_seven_digits_of_a_second(tmp_path: Path) -> None:
    first, second = read_trace(written(tmp_path, AZURE)).requests

    assert (first.prompt_tokens, first.output_tokens) == (374, 44)
    assert second.arrival_s - first.arrival_s == pytest.approx(4.314579, abs=2e-6)


def test_azure_also_writes_dates_with_a_zone(tmp_path: Path) -> None:
    rows = "2024-05-12 00:00:00.001163+00:00,2,3\n2024-05-12 02:00:00.001163+02:00,4,5\n"
    first, second = read_trace(written(tmp_path, AZURE.splitlines()[0] + "\n" + rows)).requests

    assert first.arrival_s == second.arrival_s


def test_servegen_and_vtc_name_the_client(tmp_path: Path) -> None:
    assert read_trace(written(tmp_path, SERVEGEN)).requests == (
        TraceRequest(0.0, 862, 1081, "45"),
        TraceRequest(1.5, 188, 368, "54"),
    )
    assert read_trace(written(tmp_path, VTC)).requests == (TraceRequest(0.25, 13, 199, "lora-13"),)


def test_mooncake_counts_in_milliseconds_and_names_prefix_blocks(tmp_path: Path) -> None:
    assert read_trace(written(tmp_path, MOONCAKE, "trace.jsonl")).requests == (
        TraceRequest(0.0, 600, 6, "", (7, 8)),
        TraceRequest(1.5, 28, 4, "", (9,)),
    )


def test_gzip_is_recognised_by_content_and_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(gzip.compress(VTC.encode()))

    assert len(read_trace(path).requests) == 1


def test_requests_come_in_order_of_arrival(tmp_path: Path) -> None:
    rows = "arrival_s,input_tokens,output_tokens\n2,1,1\n1,2,2\n1,3,3\n"

    assert [request.prompt_tokens for request in read_trace(written(tmp_path, rows)).requests] == [2, 3, 1]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("now,1,1", "Invalid isoformat string: 'now'"),
        ("1,1.5,1", "'1.5' is not a number of tokens of 1 or more"),
        ("1,1,0", "'0' is not a number of tokens of 1 or more"),
        ("1,-4,1", "'-4' is not a number of tokens of 1 or more"),
        ("1,inf,1", "'inf' is not a number of tokens of 1 or more"),
        ("nan,1,1", "Invalid isoformat string: 'nan'"),
        ("1,2", "has 2 of 3 columns"),
    ],
)
def test_a_row_that_cannot_be_read_is_left_out_and_named(tmp_path: Path, row: str, why: str) -> None:
    trace = read_trace(written(tmp_path, f"arrival_s,input_tokens,output_tokens\n0,1,1\n{row}\n"))

    assert len(trace.requests) == 1
    assert trace.complaint == f"trace.csv: 1 row was left out; the first: line 3: {why}"


@pytest.mark.parametrize(
    "line",
    [
        *('{"timestamp": 1}', '{"timestamp":', "[1]", '{"timestamp": 1, "input_length": null}', "[" * 100_000),
        '{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": [1e999]}',
    ],
    ids=["short", "cut", "list", "null", "deep", "infinite"],
)
def test_a_json_line_that_cannot_be_read_is_left_out_and_named(tmp_path: Path, line: str) -> None:
    trace = read_trace(written(tmp_path, f"{MOONCAKE}{line}\n"))

    assert (len(trace.requests), trace.left_out) == (2, 1)
    assert "line 3" in trace.complaint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("a,b,c\n1,2,3\n", "has no column 'timestamp'"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "has no column 'generatedtokens'"),
        ("arrival_s,input_tokens,output_tokens\n", "it has only a header"),
        ("arrival_s,input_tokens,output_tokens\n1,0,1\n", "line 2: '0' is not a number of tokens"),
        (
            f"arrival_s,input_tokens,output_tokens\n1,1,1\n1,1,{'1' * 200_000}\n",
            "line 3: field larger than field limit",
        ),
    ],
    ids=["empty", "columns", "a column", "a header", "a number", "a field"],
)
def test_a_file_that_is_not_a_trace_is_refused_with_the_reason(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        read_trace(written(tmp_path, text))


def test_a_missing_or_truncated_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        read_trace(tmp_path / "none.csv")
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(AZURE.encode() * 50)[:-20])
    with pytest.raises(BadInput, match="is truncated"):
        read_trace(cut)
    whole = bytearray(gzip.compress(AZURE.encode() * 50))
    whole[20:40] = bytes(20)
    cut.write_bytes(whole)
    with pytest.raises(BadInput, match="is neither gzip"):
        read_trace(cut)


def test_blank_lines_before_the_header_are_passed_over(tmp_path: Path) -> None:
    assert len(read_trace(written(tmp_path, "\n\n" + AZURE)).requests) == 2
