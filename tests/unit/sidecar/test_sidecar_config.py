"""The configuration file: what is accepted, what is refused, and the effect of a change on a running sidecar."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from uellm.api.sidecar_document import EngineDocument
from uellm.errors import BadInput
from uellm.sidecar.config import ConfigFile, load
from uellm.sidecar.request.dispatch import Dispatcher
from uellm.sidecar.scheduling import DEFAULT_STEP_TIME, EngineState, Options, Targets, Ticket
from uellm.step_time import StepTime


def written(folder: Path, text: str) -> Path:
    path = folder / "sidecar.yaml"
    path.write_text(text)
    return path


STEP = {"floor": 5.5e-3, "perPrefillToken": 45e-6, "perKvToken": 44e-9, "perSequence": 15e-6, "overhead": 0.5e-3}


def steps(**changes: object) -> str:
    told = ", ".join(f"{name}: {value}" for name, value in {**STEP, **changes}.items())
    return f"classes: []\nengine: {{stepSeconds: {{{told}, later: 1}}}}"


@pytest.mark.parametrize(("revision", "source"), [("r1", "old"), ("r2", "new"), ("", "old")])
def test_a_pod_serves_the_adapters_of_its_revision_where_some_are_named_for_it(tmp_path, revision, source):
    text = """
            classes: []
            adapters: [{name: sql, source: old}]
            revisionAdapters: [{revision: r2, adapters: [{name: sql, source: new}]}]
            """
    config = load(written(tmp_path, text)).of_pod(EngineDocument(revision=revision))
    assert [each.source for each in config.adapters] == [source]


def test_every_key_is_read(tmp_path):
    config = load(
        written(
            tmp_path,
            """
            model: llama
            classes:
            - {name: interactive, priority: 10, ttft: 500ms, tpot: 50ms}
            - {name: batch, e2e: 1h30m, onDeadline: Reject}
            defaultClass: batch
            scheduling: {policy: FCFS, maxQueuedRequests: 7}
            engine: {maxNumSeqs: 3}
            """,
        )
    )
    assert config.model == "llama"
    assert config.scheduling.policy == "FCFS"
    assert config.options() == Options("FCFS", max_in_flight=3, max_queued=7)
    assert list(config.targets().values()) == [
        Targets("batch", e2e_s=5400.0, reject_late=True),
        Targets("interactive", priority=10, ttft_s=0.5, tpot_s=0.05),
    ]


def test_step_times_are_read_as_in_an_engines_file(tmp_path):
    text = steps(perKvToken="4.4e-08", floor="5.5e-3")
    assert load(written(tmp_path, text)).step_model() == StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3)
    assert load(written(tmp_path, "classes: []")).step_model() == DEFAULT_STEP_TIME


def test_only_classes_is_required_and_may_be_empty(tmp_path):
    config = load(written(tmp_path, "classes: []"))
    assert config.targets() == {"default": Targets("default")}
    assert config.options() == Options("SLO-ODBS", 1024, 256)


def test_keys_of_a_newer_operator_are_ignored(tmp_path):
    text = "classes: [{name: a, ttft: 1s, later: 1}]\nscheduling: {predictor: Online}\nengine: {x: 1}\ny: 2"
    assert list(load(written(tmp_path, text)).targets()) == ["a"]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{}", "classes"),
        ("classes: 1", "classes"),
        ("classes: [{ttft: 1s}]", "classes[0].name"),
        ("classes: [{name: a, ttft: 1}]", "classes[0].ttft"),
        ("classes: [{name: a, ttft: 0s}]", "classes[0].ttft"),
        ("classes: [{name: a, e2e: 5 minutes}]", "classes[0].e2e"),
        ("classes: [{name: a, onDeadline: Drop}]", "classes[0].onDeadline"),
        ("classes: []\nscheduling: {policy: Magic}", "scheduling.policy"),
        ("classes: []\nscheduling: {maxQueuedRequests: 0}", "scheduling.maxQueuedRequests"),
        ("classes: []\nengine: {maxNumSeqs: 0}", "engine.maxNumSeqs"),
        ("classes: []\nengine: {stepSeconds: {floor: 1}}", "engine.stepSeconds.perPrefillToken"),
        (steps(floor=-1), "engine.stepSeconds.floor"),
        (steps(perPrefillToken=0), "engine.stepSeconds.perPrefillToken"),
        (steps(perKvToken=".nan"), "engine.stepSeconds.perKvToken"),
        (steps(perSequence="soon"), "engine.stepSeconds.perSequence"),
        (steps(overhead=".inf"), "engine.stepSeconds.overhead"),
        (steps(floor=0, overhead=0), "engine.stepSeconds"),
        ("classes: [{name: a, ttft: 1s}, {name: a, ttft: 2s}]", "sidecar.yaml"),
        ("classes: [{name: a, ttft: 1s}]\ndefaultClass: b", "sidecar.yaml"),
        ("classes: [", "sidecar.yaml"),
        ("- 1", "sidecar.yaml"),
        ("", "sidecar.yaml"),
        ("\x00", "sidecar.yaml"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_the_field(tmp_path, text, field):
    with pytest.raises(BadInput) as refused:
        load(written(tmp_path, text))
    assert refused.value.field.endswith(field)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere\.yaml: cannot be read"):
        load(tmp_path / "nowhere.yaml")


def test_a_change_is_seen_once_and_a_bad_one_changes_nothing(tmp_path):
    file = ConfigFile(written(tmp_path, "classes: []"))
    assert not file.poll()
    written(tmp_path, "classes: [{name: a, ttft: 1s}]")
    assert file.poll()
    assert not file.poll()
    written(tmp_path, "classes: [{name: broken")
    assert not file.poll()
    assert file.error is not None
    assert list(file.current.targets()) == ["a"]
    (tmp_path / "sidecar.yaml").unlink()
    assert not file.poll()
    assert "cannot be read" in str(file.error)
    written(tmp_path, "classes: [{name: b, ttft: 1s}]")
    assert file.poll()
    assert file.error is None


def test_the_swap_of_a_configmaps_symbolic_link_is_a_change(tmp_path):
    for version, name in (("..1", "a"), ("..2", "b")):
        (tmp_path / version).mkdir()
        written(tmp_path / version, f"classes: [{{name: {name}, ttft: 1s}}]")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "sidecar.yaml").symlink_to("..data/sidecar.yaml")
    file = ConfigFile(tmp_path / "sidecar.yaml")
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    assert file.poll()
    assert list(file.current.targets()) == ["b"]


async def test_a_running_sidecar_follows_its_file(launch, eventually):
    harness = await launch({"classes": [{"name": "old", "ttft": "1s"}]}, config_poll_s=0.01)
    harness.configure({"classes": [{"name": "new", "ttft": "1s"}], "engine": {"maxNumSeqs": 2}})
    await eventually(lambda: harness.sidecar.figures.reloads.value("taken") == 1)
    async with harness.post(x_slo_class="new") as response:
        assert response.status == 200
    async with harness.post(x_slo_class="old") as response:
        assert response.status == 400


async def test_a_running_sidecar_keeps_its_configuration_when_the_new_one_is_bad(launch, caplog):
    harness = await launch({"classes": [{"name": "old", "ttft": "1s"}]})
    harness.configure("classes: [{name: new, ttft: never}]")
    harness.sidecar.reload()
    harness.sidecar.reload()
    assert harness.sidecar.figures.reloads.value("refused") == 1
    assert "classes[0].ttft" in caplog.text
    async with harness.post(x_slo_class="old") as response:
        assert response.status == 200
    async with harness.client.get(harness.management("/metrics")) as response:
        assert "uellm_config_bad 1\n" in await response.text()


async def test_more_places_at_the_engine_are_used_at_once(engine, launch, eventually):
    harness = await launch({"classes": [], "engine": {"maxNumSeqs": 1}})
    engine.script = engine.on_word
    asked = [harness.ask(), harness.ask()]
    first = await engine.arrivals.get()
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    harness.configure({"classes": [], "engine": {"maxNumSeqs": 2}})
    harness.sidecar.reload()
    second = await engine.arrivals.get()
    for received in (first, second):
        received.go_on.set()
    assert [(await task)[0] for task in asked] == [200, 200]


@pytest.mark.parametrize(("prompt_s", "first"), [(50e-6, "long"), (1e-3, "short")])
async def test_the_first_decision_already_uses_the_step_times_of_the_file(prompt_s, first, eventually):
    # At the second pace only the long prompt misses its target, so nothing is lost if it is dropped.
    dispatcher, turns = Dispatcher(Options(), replace(DEFAULT_STEP_TIME, per_prefill_token_s=prompt_s)), []

    async def turn(name: str, ticket: Ticket) -> None:
        await dispatcher.turn(ticket)
        turns.append(name)

    now_s = asyncio.get_running_loop().time()
    long = Ticket(Targets("chat", ttft_s=1.0), now_s, 8000)
    short = Ticket(Targets("task", e2e_s=30.0), now_s, 3000)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(turn("long", long)), group.create_task(turn("short", short))]
        await eventually(lambda: dispatcher.queued == 2)
        dispatcher.on_engine_state(EngineState(ready=True))
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert turns == [first]
        dispatcher.abort(long)
        dispatcher.abort(short)
        for task in tasks:
            task.cancel()
    dispatcher.close()


async def test_changed_step_times_of_the_file_are_taken_over(launch):
    harness = await launch({"classes": [], "engine": {"stepSeconds": STEP}})
    dispatcher = harness.sidecar.dispatcher
    assert dispatcher.figures()["prefill_token_seconds"] == 45e-6
    harness.configure({"classes": [], "engine": {"stepSeconds": {**STEP, "perPrefillToken": 90e-6}}})
    harness.sidecar.reload()
    assert dispatcher.figures()["prefill_token_seconds"] == 90e-6
    harness.configure({"classes": []})
    harness.sidecar.reload()
    assert dispatcher.figures()["prefill_token_seconds"] == DEFAULT_STEP_TIME.per_prefill_token_s
