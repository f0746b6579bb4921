"""What the profile shows of the measuring pods' document: what is about these GPUs, and can be believed."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace

import pytest

from helpers.fake_nvml import FakeNVML, board
from uellm.api import parse
from uellm.api.gpunodeprofile import GPUNodeProfileStatus
from uellm.measuring.device_list import devices_of_gpu_node, parse_terms
from uellm.measuring.document import NAME, Clocks, DeviceRecord, MeasurementDocument, MeasuringTerms
from uellm.measuring.store import write_document
from uellm.profiler.measured import MeasurementFile, believed
from uellm.profiler.nvml import NVMLSource
from uellm.profiler.sample import Sample
from uellm.profiler.status import Seen, compose

NOON = "2026-01-01T12:00:00Z"
H100 = {"product": "NVIDIA H100 80GB HBM3", "memoryBytes": 80 << 30, "powerLimitWatts": 700}
A, B = ({"index": index, "uuid": f"GPU-{name}", **H100} for index, name in enumerate("ab"))
LINKS = ({"a": "GPU-a", "b": "GPU-b", "kind": "NVLink"}, {"a": "GPU-b", "b": "GPU-a", "kind": "NVLink"})
SAMPLE = Sample("NVML", (A, B), LINKS, "580.1")
FIGURES = {"bf16GigaflopsPerSecond": 780_000, "memoryBytesPerSecond": 3_000_000_000_000, "launchNanoseconds": 6000}


def record(uuid, **changes):
    made = DeviceRecord(uuid, MeasuringTerms("580.1", 700), Clocks(1980, 2619), ("bf16",), FIGURES, NOON)
    return replace(made, **changes)


def document(*records, **fields):
    records = records or (record("GPU-a"), record("GPU-b"))
    fields = {"torch_version": "2.11.0", "cuda_version": "13.0", "finished": "mark", **fields}
    made = MeasurementDocument(links={("GPU-a", "GPU-b"): {"bytesPerSecond": 7, "latencyNanoseconds": 8}}, **fields)
    return replace(made, devices={each.uuid: each for each in records})


def test_the_profile_says_what_was_measured_when_with_which_versions_and_under_which_power_and_clocks():
    found = believed(document(groups={("GPU-a", "GPU-b"): {16384: 9000}}), SAMPLE)
    seen = Seen(SAMPLE, measured=found.devices, measured_links=found.links, measurement=found.measurement)
    status = compose(seen, {}, NOON, observed_at=NOON)
    assert status["devices"][0]["measured"] == {
        **FIGURES,
        "powerLimitWatts": 700,
        "smClockMegahertz": 1980,
        "memoryClockMegahertz": 2619,
        "measuredAt": NOON,
    }
    assert status["links"][0] == {**LINKS[0], "bytesPerSecond": 7, "latencyNanoseconds": 8}
    assert status["measurement"] == {
        "on": "GPU",
        "finished": "mark",
        "torchVersion": "2.11.0",
        "cudaVersion": "13.0",
        "allReduce": [{"gpus": 2, "bytes": 16384, "nanoseconds": 9000}],
        "failures": [],
    }


def test_figures_of_gpus_that_are_not_there_or_not_complete_are_left_out_in_silence():
    found = believed(document(record("GPU-a", measured_at=""), record("GPU-z")), SAMPLE)
    assert (found.devices, found.links) == ({}, {})
    assert "failures" not in (found.measurement or {})


@pytest.mark.parametrize(
    ("terms", "otherwise"),
    [
        (MeasuringTerms("590.1", 700), "they were measured with driver 590.1, and it is 580.1 now"),
        (MeasuringTerms("580.1", 500), "they were measured under a power limit of 500 W, and it is 700 W now"),
    ],
    ids=["driver", "power limit"],
)
def test_figures_of_other_terms_do_not_count_and_neither_do_their_links(terms, otherwise):
    groups = {("GPU-a", "GPU-b"): {16384: 9000}}
    found = believed(document(record("GPU-a", terms=terms), record("GPU-b"), groups=groups), SAMPLE)
    assert (set(found.devices), found.links) == ({"GPU-b"}, {})
    assert found.measurement is not None
    assert "allReduce" not in found.measurement
    assert found.measurement["failures"] == [f"the figures of GPU-a are not used: {otherwise}"]


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        (
            {"bf16GigaflopsPerSecond": 8_000_000},
            "the figures of GPU-a are not used: bf16GigaflopsPerSecond is 8e\\+06, more than 10 times what a H100-80 "
            r"reaches \(7.9e\+05\)",
        ),
        ({"memoryBytesPerSecond": 0}, "the figures of GPU-a are not used: memoryBytesPerSecond: .*"),
        ({"memoryBytesPerSecond": -1}, "the figures of GPU-a are not used: memoryBytesPerSecond: .*"),
        ({"memoryBytesPerSecond": math.nan}, "the figures of GPU-a are not used: memoryBytesPerSecond: .*"),
    ],
)
def test_figures_that_cannot_be_are_refused_with_a_sentence(figures, sentence):
    found = believed(document(record("GPU-a", figures=figures), record("GPU-b")), SAMPLE)
    assert set(found.devices) == {"GPU-b"}
    assert found.measurement is not None
    [failure] = found.measurement["failures"]
    assert re.fullmatch(sentence, failure), failure


def test_a_link_that_is_faster_than_its_gpus_memory_is_refused():
    made = replace(document(), links={("GPU-a", "GPU-b"): {"bytesPerSecond": 10**14}})
    found = believed(made, SAMPLE)
    assert found.links == {}
    assert found.measurement is not None
    assert found.measurement["failures"][0].startswith("the figures of the link from GPU-a to GPU-b are not used: ")


def test_figures_of_a_cpu_are_never_those_of_a_gpu_and_those_of_a_gpu_never_of_a_simulated_one():
    simulated = Sample("Simulated", (A, B), LINKS, measured_on="CPU")
    for made, sample in ((document(on="CPU"), SAMPLE), (document(on="GPU"), simulated)):
        found = believed(made, sample)
        assert (found.devices, found.links) == ({}, {})
        assert found.measurement == {
            "on": sample.measured_on,
            "failures": [
                f"figures of a {made.on} are not used: these are to be measured on a {sample.measured_on}",
            ],
        }
    assert set(believed(document(on="CPU"), simulated).devices) == {"GPU-a", "GPU-b"}


def test_nvml_and_nvidia_smi_agree_on_the_terms_of_a_gpu():
    sample = NVMLSource(FakeNVML(board("H100", "GPU-a"))).sample()
    terms = parse_terms(f"GPU-a, {sample.driver_version}, 700.00")["GPU-a"]
    assert set(believed(document(record("GPU-a", terms=terms)), sample).devices) == {"GPU-a"}
    limited = NVMLSource(FakeNVML(board("H100", "GPU-a", power_milliwatts=500_000))).sample()
    assert believed(document(record("GPU-a", terms=terms)), limited).devices == {}


def test_the_power_limit_of_a_measurement_is_the_one_that_is_enforced(tmp_path):
    """As where the node's management caps what software has set."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        '--query-gpu=uuid,driver_version,enforced.power.limit) echo "GPU-a, 580.1, 500.00" ;;\n'
        '--query-gpu=uuid,driver_version,power.limit) echo "GPU-a, 580.1, 700.00" ;;\n'
        "*) exit 2 ;;\n"
        "esac\n"
    )
    program.chmod(0o755)
    assert devices_of_gpu_node(str(program)) == {"GPU-a": MeasuringTerms("580.1", 500)}


def test_described_rates_stay_where_the_description_does_not_ask_for_measuring(tmp_path):
    write_document(tmp_path, document(on="CPU"))
    found = MeasurementFile(tmp_path).believed(Sample("Simulated", (A, B), LINKS, measured_on=""))
    assert (found.devices, found.links, found.measurement) == ({}, {}, None)


def test_a_simulated_node_that_asks_for_measuring_says_so_before_anything_is_measured(tmp_path):
    found = MeasurementFile(tmp_path).believed(Sample("Simulated", (A,), measured_on="CPU"))
    assert found.measurement == {"on": "CPU"}
    parse(GPUNodeProfileStatus, {"measurement": found.measurement})


def test_a_document_that_cannot_be_read_is_told_in_the_profile_until_there_is_a_better_one(tmp_path):
    measurements = MeasurementFile(tmp_path)
    assert measurements.believed(SAMPLE).measurement is None
    (tmp_path / NAME).write_text("{")
    [failure] = (measurements.believed(SAMPLE).measurement or {})["failures"]
    assert failure.startswith(f"{tmp_path / NAME} cannot be read: it is not JSON")
    write_document(tmp_path, document())
    assert set(measurements.believed(SAMPLE).devices) == {"GPU-a", "GPU-b"}
    (tmp_path / NAME).unlink()
    assert measurements.believed(SAMPLE).devices == {}


@pytest.mark.parametrize("value", ["700", [], {}, 1.5, math.nan, math.inf, True], ids=repr)
@pytest.mark.parametrize("name", ["powerLimitWatts", "smClockMegahertz", "figures"])
def test_a_document_whose_numbers_are_none_does_not_stop_the_profiler(tmp_path, name, value):
    written = document().to_dict()
    written["devices"][0][name] = {**FIGURES, "launchNanoseconds": value} if name == "figures" else value
    (tmp_path / NAME).write_text(json.dumps(written))
    found = MeasurementFile(tmp_path).believed(SAMPLE)
    assert found.devices == {}
    assert found.measurement is not None
    assert "is no integer" in found.measurement["failures"][0]


@pytest.mark.parametrize("value", ["yesterday", 7, "2026-02-30T00:00:00Z"], ids=repr)
def test_a_time_that_the_api_server_would_refuse_is_not_shown(tmp_path, value):
    written = document().to_dict()
    written["devices"][0]["measuredAt"] = value
    (tmp_path / NAME).write_text(json.dumps(written))
    found = MeasurementFile(tmp_path).believed(SAMPLE)
    assert (found.devices, found.links) == ({}, {})
    assert "cannot be read: " in (found.measurement or {})["failures"][0]


def test_a_figure_that_the_api_does_not_know_is_left_out():
    made = document(record("GPU-a", figures={**FIGURES, "unknown": 1}), record("GPU-b"))
    found = believed(replace(made, links={("GPU-a", "GPU-b"): {"bytesPerSecond": 7, "unknown": 1}}), SAMPLE)
    assert found.devices["GPU-a"].keys() == found.devices["GPU-b"].keys()
    assert found.links == {("GPU-a", "GPU-b"): {"bytesPerSecond": 7}}


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)])
def test_what_is_no_regular_file_is_not_read(tmp_path, put):
    put(tmp_path / NAME)
    found = MeasurementFile(tmp_path).believed(SAMPLE)
    assert found.measurement is not None
    [failure] = found.measurement["failures"]
    assert failure.startswith(f"{tmp_path / NAME} cannot be read: ")
    assert "root:" not in failure
