"""What is left to measure, and what of an earlier result still holds."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uellm.documents import UnreadableDocument
from uellm.errors import CannotBeDone
from uellm.measuring import session
from uellm.measuring.device_list import devices_of_simulated_node, parse_clocks, parse_terms
from uellm.measuring.document import NAME, Clocks, DeviceRecord, MeasurementDocument, MeasuringTerms
from uellm.measuring.figures import Sizes
from uellm.measuring.store import MOST_BYTES, read_document, write_document
from uellm.measuring.work import DEVICE_TASKS, MeasuringTask, still_valid, tasks_left

UUIDS = ("GPU-a", "GPU-b", "GPU-c")
TERMS = {uuid: MeasuringTerms("580.1", 300) for uuid in UUIDS}


class Bench(session.Bench):
    """Figures without a device; it fails where `fails` says so, and is ended before task number `ended_at`."""

    def __init__(self, terms, fails=frozenset(), ended_at=None):
        super().__init__(SimpleNamespace(), "GPU", terms, ())
        object.__setattr__(self, "asked", [])
        object.__setattr__(self, "fails", fails)
        object.__setattr__(self, "ended_at", ended_at)

    def _figure(self, name, *task):
        if self.ended_at is not None and len(self.asked) >= self.ended_at:
            raise KeyboardInterrupt
        self.asked.append(task)
        if task[0] in self.fails:
            raise RuntimeError(f"{task[0]} failed\nwith a trace")
        return {name: 7}

    def of_device(self, what, uuid):
        return self._figure("memoryBytesPerSecond" if what == "memory" else f"{what}GigaflopsPerSecond", what, uuid)

    def of_link(self, a, b):
        return self._figure("bytesPerSecond", "link", a, b)

    def clocks(self, uuid):
        return Clocks(1980, 2619)


@pytest.fixture(autouse=True)
def groups(monkeypatch):
    monkeypatch.setattr(session, "group_times", lambda program, size, on: {16384: size})


def whole(terms=TERMS, **options):
    return session.carry_out(Bench(terms, **options), MeasurementDocument(), lambda _: None)


def test_everything_is_measured_once_the_devices_before_links_and_groups():
    bench, published = Bench(TERMS), []
    document = session.carry_out(bench, MeasurementDocument(), published.append)
    devices, links = [(what, uuid) for uuid in UUIDS for what in DEVICE_TASKS], bench.asked[3 * len(DEVICE_TASKS) :]
    assert bench.asked[: len(devices)] == devices
    assert len(links) == 6
    assert list(document.groups) == [("GPU-a", "GPU-b")]
    assert len(published) == len(devices) + 6 + 1
    assert list(tasks_left(document, UUIDS)) == []
    assert document.devices["GPU-a"].clocks == Clocks(1980, 2619)


@given(st.lists(st.integers(0, 12), max_size=8))
def test_interrupted_anywhere_it_goes_on_with_what_is_left_and_repeats_at_most_one_task(stops):
    document, asked = MeasurementDocument(), []

    def keep(made):
        nonlocal document
        document = MeasurementDocument.from_dict(json.loads(json.dumps(made.to_dict())))

    for stop in [*stops, None]:
        bench = Bench(TERMS, ended_at=stop)
        with suppress(KeyboardInterrupt):
            session.carry_out(bench, still_valid(document, "GPU", "", TERMS), keep)
        asked += bench.asked
    assert len(asked) == len(set(asked)) == 3 * len(DEVICE_TASKS) + 6
    assert all(record.measured_at for record in document.devices.values())


def test_the_cpu_has_every_figure_of_devices_and_links_in_the_place_of_simulated_gpus():
    torch = pytest.importorskip("torch")
    terms = {uuid: MeasuringTerms() for uuid in UUIDS[:2]}
    bench = session.Bench(torch, "CPU", terms, (), Sizes(64, 2**16, 0.01))
    document = session.carry_out(bench, MeasurementDocument(on="CPU"), lambda _: None)
    assert document.failures == ()
    for record in document.devices.values():
        assert record.measured_at
        assert {"bf16GigaflopsPerSecond", "bf16DecodeGigaflopsPerSecond", "hostBytesPerSecond"} <= record.figures.keys()
    assert all(figures["bytesPerSecond"] > 2**16 for figures in document.links.values())
    assert len(document.links) == 2


def test_a_device_is_measured_when_its_last_figure_is_there():
    published = []
    session.carry_out(Bench({"GPU-a": MeasuringTerms()}), MeasurementDocument(), published.append)
    assert [bool(made.devices["GPU-a"].measured_at) for made in published] == [False] * 5 + [True]


def test_what_fails_is_noted_in_one_line_and_only_devices_are_tried_again_by_the_next_pod():
    document = whole(fails=frozenset({"fp8", "link"}))
    assert "fp8 of GPU-a: fp8 failed" in document.failures
    assert "fp8GigaflopsPerSecond" not in document.devices["GPU-a"].figures
    assert document.devices["GPU-a"].measured_at
    assert document.links["GPU-a", "GPU-b"] == {}
    assert list(tasks_left(document, UUIDS)) == [MeasuringTask("fp8", (uuid,)) for uuid in UUIDS]
    again = session.carry_out(Bench(TERMS), document, lambda _: None)
    assert "fp8GigaflopsPerSecond" in again.devices["GPU-a"].figures
    assert again.devices["GPU-a"].measured_at


@pytest.mark.parametrize("fails", [{"memory"}, {"bf16", "fp16", "fp8"}])
def test_a_device_without_the_rates_that_plans_need_is_not_measured(fails):
    document = whole(fails=frozenset(fails))
    assert all(not record.measured_at for record in document.devices.values())


@pytest.mark.parametrize(
    "now", [MeasuringTerms("590.1", 300), MeasuringTerms("580.1", 200)], ids=["another driver", "another limit"]
)
def test_figures_of_other_terms_are_measured_again_and_so_are_their_links(now):
    kept = still_valid(whole(), "GPU", "", {**TERMS, "GPU-a": now})
    left = list(tasks_left(kept, UUIDS))
    assert left[: len(DEVICE_TASKS)] == [MeasuringTask(what, ("GPU-a",)) for what in DEVICE_TASKS]
    assert {task.devices for task in left if task.what == "link"} == {
        pair for pair in [(a, b) for a in UUIDS for b in UUIDS if a != b] if "GPU-a" in pair
    }
    assert set(kept.devices) == {"GPU-b", "GPU-c"}


def test_terms_that_are_unknown_or_rounded_otherwise_are_the_same():
    assert still_valid(whole(), "GPU", "", {uuid: MeasuringTerms("", 301) for uuid in UUIDS}).devices.keys() == set(
        UUIDS
    )
    assert still_valid(whole(), "GPU", "", {"GPU-a": MeasuringTerms("580.1", None)}).devices.keys() == set(UUIDS)


def test_what_other_pods_have_now_is_kept():
    kept = still_valid(whole(), "GPU", "", {"GPU-d": MeasuringTerms("580.1", 300)})
    assert kept.devices.keys() == set(UUIDS)
    assert next(tasks_left(kept, ["GPU-d"])) == MeasuringTask("bf16", ("GPU-d",))


def test_a_new_request_measures_the_devices_that_are_there_anew_and_another_kind_of_device_all():
    assert still_valid(whole(), "GPU", "again", TERMS).devices == {}
    assert still_valid(whole(), "GPU", "again", {"GPU-a": TERMS["GPU-a"]}).devices.keys() == {"GPU-b", "GPU-c"}
    assert still_valid(whole(), "GPU", "again", TERMS).request == "again"
    assert still_valid(whole(), "CPU", "", TERMS) == MeasurementDocument(on="CPU")


def test_a_document_is_read_as_it_was_written(tmp_path):
    document = replace(whole(), finished="mark", torch_version="2.11", cuda_version="13.0")
    write_document(tmp_path, document)
    assert read_document(tmp_path) == document
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_no_document_is_none(tmp_path):
    assert read_document(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "it is not JSON"),
        ("[]", "it is not a JSON object"),
        ('{"version": 2}', "it has version 2"),
        ('{"version": 1}', "it has no field 'on'"),
        ('{"on": "TPU"}', "it was measured on 'TPU'"),
        ('{"on": "GPU", "devices": [{}]}', "it has no field 'uuid'"),
        (" " * (MOST_BYTES + 1), f"it has more than {MOST_BYTES} bytes"),
    ],
)
def test_what_is_no_document_is_refused_with_the_reason(tmp_path, text, why):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(UnreadableDocument, match=why):
        read_document(tmp_path)


def test_nvidia_smis_answers_are_read_and_what_it_does_not_know_stays_unknown():
    assert parse_terms("GPU-a, 580.95.05, 700.00\nGPU-b, 580.95.05, [N/A]\n\n") == {
        "GPU-a": MeasuringTerms("580.95.05", 700),
        "GPU-b": MeasuringTerms("580.95.05", None),
    }
    assert parse_clocks("GPU-a, 1980, [N/A]") == {"GPU-a": Clocks(1980, None)}


@pytest.mark.parametrize("given", ["", "void", "all"])
def test_without_simulated_devices_it_says_that_the_device_plugin_gave_none(given):
    assert list(devices_of_simulated_node({"NVIDIA_VISIBLE_DEVICES": "GPU-b,GPU-a"})) == ["GPU-b", "GPU-a"]
    with pytest.raises(CannotBeDone, match="the device plugin gave this container none"):
        devices_of_simulated_node({"NVIDIA_VISIBLE_DEVICES": given})


def test_a_record_of_a_device_has_no_empty_fields():
    assert DeviceRecord("GPU-a").to_dict() == {"uuid": "GPU-a", "done": [], "figures": {}}
