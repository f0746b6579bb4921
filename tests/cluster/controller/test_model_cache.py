"""A model that is copied to a volume before its engines start, on the real API server with its real volume binder.

The test plays the download pod: kwok lets it run, and the test says how far it is.
"""

from __future__ import annotations

import json

import pytest
import yaml

from helpers.checkpoints import llama_tensors
from helpers.models import LLAMA_8B
from helpers.sizes import GIB
from uellm.hub import LookUpRefusal, ModelFacts
from uellm.hub.adapter import AdapterFacts
from uellm.hub.copy_document import to_document
from uellm.hub.copy_state import Copied, Progress
from uellm.hub.document import to_document as facts_document
from uellm.kube import POD, kinds
from uellm.kube.kinds import CONFIGMAP, DEPLOYMENT, PVC, Kind

COMMIT, LATER = "c0ffee" + "0" * 34, "beef" + "0" * 36
CONFIG = {**LLAMA_8B, "max_position_embeddings": 8192, "tie_word_embeddings": False}
HALF = Progress(52_200_000_000, 141_000_000_000, 238.0, False)
FULL = LookUpRefusal("VolumeFull", "claim llama-weights is too small: enlarge it")
PV = Kind("v1", "PersistentVolume", "persistentvolumes", False)
STORAGE_CLASS = Kind("storage.k8s.io/v1", "StorageClass", "storageclasses", False)


def model(commit=COMMIT, **more):
    """With its configuration, so that no pod looks it up."""
    return {"uri": "hf://org/llama", "revision": commit, "config": CONFIG, "maxModelLen": 4096, **more}


def copied(commit=COMMIT):
    return Copied(commit, f"org/llama/{commit}", 12, 141_000_000_000)


class World:
    """A service with a cache, its operator, and its download pods as kwok runs them."""

    def __init__(self, make_operator, service, kube, namespace, eventually, storage_class):
        self.restart = make_operator
        self.operator = make_operator()
        self.service, self.kube, self.namespace, self.eventually = service, kube, namespace, eventually
        self.made = {"size": "10Gi", "accessModes": ["ReadWriteMany"], "storageClassName": storage_class}

    async def begun(self, cache=None, answered=(), **more):
        """The service, planned, with a download pod that runs. `answered`: what is found of its adapters."""
        llama = await self.service(model=model(cache=cache or self.made, **more))
        await self.operator.settle("llama")
        if answered:
            await self.answered(*answered)
        await self.running()
        return llama

    async def serving(self):
        """The service with its copy and its engine."""
        llama = await self.begun()
        await self.tell(copied())
        return llama

    async def pods(self, name="llama"):
        pods = await self.kube.list(POD, self.namespace, label_selector=f"uellm.io/download={name}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    async def running(self, name="llama"):
        async def found():
            return next((pod for pod in await self.pods(name) if pod["status"].get("phase") == "Running"), None)

        return await self.eventually(found)

    async def tell(self, state, name="llama"):
        """Let the pod that runs say how far it is, and the operator hear it."""
        pod = await self.running(name)
        self.operator.copies = {pod["status"]["podIP"]: to_document(state)}
        await self.operator.settle(name)
        self.operator.copies = {}  # the next pod may have the same address

    async def answered(self, *found):
        """Let the inspection pod say what it has found of the adapters."""
        await self.operator.settle("llama")

        async def asked():
            pods = await self.kube.list(POD, self.namespace, label_selector="uellm.io/inspection=llama")
            alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
            return next((pod for pod in alive if pod["status"].get("phase") == "Running"), None)

        pod = await self.eventually(asked)
        self.operator.answers = {pod["status"]["podIP"]: facts_document(ModelFacts("", {}, None, 0, found))}
        await self.operator.settle("llama")
        self.operator.answers = {}

    async def hold(self, *finalizers):
        """Let the claim stay for as long as these finalizers are there."""
        metadata = {"name": "llama-weights", "namespace": self.namespace, "finalizers": list(finalizers)}
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata}
        await self.kube.apply(claim, manager="tests")

    async def claim(self, name="llama-weights"):
        return await self.kube.get(PVC, name, self.namespace)


@pytest.fixture
async def storage_class(kube, namespace, monkeypatch):
    """A class without a provisioner, and volumes of it that claims can be bound to."""
    for kind in (PV, STORAGE_CLASS):
        monkeypatch.setitem(kinds.KINDS, (kind.api_version, kind.kind), kind)
    name = f"class-{namespace}"
    made = {"apiVersion": STORAGE_CLASS.api_version, "kind": STORAGE_CLASS.kind, "metadata": {"name": name}}
    await kube.create({**made, "provisioner": "kubernetes.io/no-provisioner", "allowVolumeExpansion": True})
    volumes = [f"{name}-{number}" for number in range(2)]
    for each in volumes:
        spec = {
            "capacity": {"storage": "20Gi"},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "storageClassName": name,
            "hostPath": {"path": f"/{each}"},
        }
        await kube.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": each}, "spec": spec})
    yield name
    for each in volumes:
        await kube.delete(PV, each)
    await kube.delete(STORAGE_CLASS, name)


@pytest.fixture
async def world(operator, service, gpu_node, kube, namespace, eventually, storage_class):
    await gpu_node([24 * GIB])
    return World(operator, service, kube, namespace, eventually, storage_class)


async def planned_engine(llama):
    return json.loads((await llama.revision())["data"]["plan.json"])["engine"]


async def test_no_engine_starts_before_the_copy_is_complete_and_the_status_says_how_far_it_is(world):
    llama = await world.begun()
    assert (await llama.condition("Planned"))[0] == "True"
    assert await llama.children() == []
    await world.tell(HALF)
    message = "the model is being copied to claim llama-weights: 37 % of 141 GB, about 4 min"
    assert await llama.condition("ModelAccessible") == ("Unknown", "ModelDownloading", message)
    assert await llama.condition("Ready") == ("False", "ModelDownloading", message)
    assert (await llama.condition("Stalled"))[0] == "False"
    assert await llama.children() == []
    await world.tell(copied())
    assert len(await llama.children()) == 4
    engine = await planned_engine(llama)
    assert (engine["model"], engine["revision"]) == (f"/models/org/llama/{COMMIT}", "")
    assert (await llama.condition("ModelAccessible"))[2].endswith("; 12 files of 141 GB on claim llama-weights")
    assert await world.pods() == []
    spec = (await llama.deployment())["spec"]["template"]["spec"]
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "llama-weights"}} in spec["volumes"]
    assert {"name": "model", "mountPath": "/models", "readOnly": True} in spec["containers"][0]["volumeMounts"]


async def test_the_gpus_of_a_service_that_downloads_are_promised_to_it(world):
    await world.begun()
    other = await world.service("other")
    await world.operator.settle("llama", "other")
    assert (await other.condition("Planned"))[:2] == ("False", "NoFit")


async def test_a_model_that_fits_nowhere_is_not_downloaded(world):
    llama = await world.service(
        model=model(cache=world.made, dtype="float32"), placement={"gpus": {"min": 8, "max": 8}}
    )
    await world.operator.settle("llama")
    assert (await llama.condition("Planned"))[0] == "False"
    assert await world.pods() == []
    assert await world.claim() is None


async def test_the_claim_is_made_as_the_spec_says_and_grows_with_it(world):
    llama = await world.begun()
    claim = await world.claim()
    assert claim["metadata"]["ownerReferences"][0]["name"] == "llama"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["spec"]["storageClassName"] == world.made["storageClassName"]
    await world.tell(copied())
    before = await llama.deployment()
    await llama.change(lambda spec: spec["model"]["cache"].update(size="15Gi"))
    await world.operator.settle("llama")
    assert (await world.claim())["spec"]["resources"]["requests"]["storage"] == "15Gi"
    assert (await llama.deployment())["spec"]["template"] == before["spec"]["template"]


async def test_a_claim_that_cannot_shrink_is_told_and_leaves_the_engines_alone(world):
    llama = await world.serving()
    before = await llama.deployment()
    await llama.change(lambda spec: spec["model"]["cache"].update(size="5Gi"))
    await world.operator.settle("llama")
    status, reason, message = await llama.condition("ModelAccessible")
    assert (status, reason) == ("False", "Invalid")
    assert message.startswith("the API server refuses the PersistentVolumeClaim: ")
    assert (await llama.deployment())["spec"] == before["spec"]


async def test_another_storage_class_is_told_in_one_line(world):
    llama = await world.serving()
    await llama.change(lambda spec: spec["model"]["cache"].update(storageClassName="other"))
    await world.operator.settle("llama")
    status, reason, message = await llama.condition("Ready")
    assert (status, reason) == ("False", "ClaimDiffers")
    assert message.startswith(f"claim llama-weights has storage class {world.made['storageClassName']}, and ")


@pytest.mark.timeout(120)
async def test_made_again_while_its_former_claim_is_being_deleted_it_says_so_and_goes_on_later(world, eventually):
    former = await world.serving()
    before = (await world.claim())["metadata"]["uid"]
    await world.hold("uellm.test/held")
    await former.delete()
    llama = await world.service(model=model(cache=world.made))

    async def told():
        await world.operator.settle("llama")
        return (await llama.condition("Ready"))[:2] == ("False", "LeftBehind")

    await eventually(told)
    message = "PersistentVolumeClaim llama-weights of the deleted LLMService "
    assert (await llama.condition("Ready"))[2].startswith(message)
    document = await llama.get()
    assert document["status"]["observedGeneration"] == document["metadata"]["generation"]

    await world.hold()

    async def made_anew():
        await world.operator.settle("llama")
        found = await world.claim()
        return found is not None and found["metadata"]["uid"] != before

    await eventually(made_anew, timeout_s=40)


async def test_another_storage_class_is_had_by_suspending_and_deleting_the_claim(world, eventually):
    llama = await world.serving()
    former = (await world.claim())["metadata"]["uid"]
    # As the engine's pods hold it, however quickly the test's pods come and go.
    await world.hold("uellm.test/held")
    await world.kube.delete(PVC, "llama-weights", world.namespace)
    await world.operator.settle("llama")
    status, reason, message = await llama.condition("ModelAccessible")
    assert (status, reason) == ("False", "ClaimDeleted")
    assert "set spec.suspend until it is gone" in message
    assert await world.pods() == []

    await llama.change(lambda spec: spec.update(suspend=True))
    await llama.change(lambda spec: spec["model"]["cache"].update(storageClassName="other"))
    await world.operator.settle("llama")
    assert (await llama.deployment())["spec"]["replicas"] == 0
    await world.hold()

    async def made_anew():
        await world.operator.settle("llama")
        found = await world.claim()
        return found["metadata"]["uid"] != former and found

    assert (await eventually(made_anew))["spec"]["storageClassName"] == "other"


async def test_a_volume_that_is_full_is_told_and_tried_again_when_the_spec_changes(world):
    llama = await world.begun()
    await world.tell(FULL)
    assert await llama.condition("Ready") == ("False", "VolumeFull", FULL.message)
    assert (await llama.condition("Stalled"))[0] == "True"
    assert await world.pods() == []
    await llama.change(lambda spec: spec["model"]["cache"].update(size="15Gi"))
    assert "create Pod" in await world.operator.step("llama")
    await world.tell(copied())
    assert len(await llama.children()) == 4


async def test_a_pod_that_is_evicted_is_made_again_and_goes_on(world):
    llama = await world.begun()
    pod = await world.running()
    kept = {name: pod["metadata"][name] for name in ("name", "namespace", "uid")}
    evicted = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
    await world.kube.apply_status({"apiVersion": "v1", "kind": "Pod", "metadata": kept, "status": evicted}, manager="k")
    await world.operator.step("llama")
    assert (await llama.condition("ModelAccessible"))[:2] == ("Unknown", "DownloadFailed")
    world.operator.later(16)
    assert "create Pod" in await world.operator.step("llama")
    await world.tell(copied())
    assert (await llama.condition("ModelAccessible"))[0] == "Unknown"  # its configuration was given
    assert len(await llama.children()) == 4


async def test_an_operator_that_was_restarted_asks_nobody_for_a_copy_that_is_complete(world):
    llama = await world.serving()
    before = await llama.state()
    world.operator = world.restart()
    await world.operator.settle("llama")
    assert "create Pod" not in world.operator.kube.writes
    assert await llama.state() == before


async def test_an_operator_that_was_restarted_meanwhile_asks_the_pod_that_is_there(world):
    llama = await world.begun()
    (pod,) = await world.pods()
    world.operator = world.restart()
    await world.operator.settle("llama")
    assert [each["metadata"]["uid"] for each in await world.pods()] == [pod["metadata"]["uid"]]
    await world.tell(copied())
    assert len(await llama.children()) == 4


async def test_pods_stay_while_a_changed_commit_is_copied_and_then_are_replaced(world):
    llama = await world.serving()
    before = await llama.deployment()
    await llama.change(lambda spec: spec["model"].update(revision=LATER))
    await world.operator.settle("llama")
    await world.tell(HALF)
    assert (await llama.condition("Ready"))[1] == "ModelDownloading"
    assert (await llama.deployment())["spec"] == before["spec"]
    assert (await planned_engine(llama))["model"].endswith(COMMIT)
    (pod,) = await world.pods()
    assert pod["spec"]["containers"][0]["args"][1] == f"hf://org/llama@{LATER}"
    await world.tell(copied(LATER))
    assert (await planned_engine(llama))["model"] == f"/models/org/llama/{LATER}"
    assert (await llama.deployment())["spec"]["template"] != before["spec"]["template"]


async def test_a_note_that_somebody_deletes_lets_a_pod_look_again_and_rolls_nobody(world):
    llama = await world.serving()
    before = await llama.deployment()
    await world.kube.delete(CONFIGMAP, "llama-weights", world.namespace)
    await world.operator.settle("llama")
    assert (await llama.deployment())["spec"] == before["spec"]
    assert (await llama.condition("ModelAccessible"))[1] == "ModelDownloading"
    assert (await llama.condition("Ready"))[1] != "ModelDownloading"
    await world.tell(copied())
    assert (await llama.deployment())["spec"] == before["spec"]
    assert await world.pods() == []


async def test_a_pod_that_copied_something_else_is_not_believed(world):
    llama = await world.begun()
    await world.tell(copied(LATER))
    assert (await llama.condition("ModelAccessible"))[1] == "InvalidAnswer"
    assert await llama.children() == []


@pytest.mark.timeout(300)
async def test_services_may_share_a_claim_that_is_nobody_s_and_stays(world):
    await foreign_claim(world, "models")
    llama = await world.begun({"claimName": "models"})
    (pod,) = await world.pods()
    assert pod["spec"]["volumes"] == [{"name": "model", "persistentVolumeClaim": {"claimName": "models"}}]
    await world.tell(copied())
    assert len(await llama.children()) == 4
    assert await world.claim() is None
    await llama.delete()
    await world.operator.settle("llama")
    await world.eventually(lambda: gone(world, DEPLOYMENT, "llama-engine"), timeout_s=150)
    assert "ownerReferences" not in (await world.claim("models"))["metadata"]


async def test_a_model_is_copied_to_another_claim_before_the_pods_are_replaced(world):
    llama = await world.serving()
    before = (await llama.deployment())["spec"]["template"]
    await foreign_claim(world, "models")
    await llama.change(lambda spec: spec["model"].update(cache={"claimName": "models"}))
    await world.operator.settle("llama")
    assert (await llama.deployment())["spec"]["template"] == before
    await world.tell(copied())
    after = (await llama.deployment())["spec"]["template"]["spec"]
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "models"}} in after["volumes"]


async def foreign_claim(world, name):
    """A claim that is nobody's."""
    spec = {name: world.made[name] for name in ("accessModes", "storageClassName")}
    spec |= {"resources": {"requests": {"storage": "10Gi"}}}
    metadata = {"name": name, "namespace": world.namespace}
    await world.kube.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})


async def gone(world, kind, name):
    return await world.kube.get(kind, name, world.namespace) is None


async def test_a_claim_that_is_not_there_is_told_in_the_scheduler_s_words(world):
    llama = await world.service(model=model(cache={"claimName": "none"}))
    await world.operator.settle("llama")

    async def told():
        await world.operator.step("llama")
        return 'persistentvolumeclaim "none" not found' in (await llama.condition("Ready"))[2]

    await world.eventually(told)
    assert (await llama.condition("Ready"))[1] == "ModelDownloading"


@pytest.mark.timeout(300)
async def test_the_claim_and_its_files_go_with_the_service(world):
    llama = await world.begun()
    await world.tell(copied())
    await llama.delete()
    await world.operator.settle("llama")
    await world.eventually(lambda: gone(world, CONFIGMAP, "llama-weights"), timeout_s=150)

    async def going():
        claim = await world.claim()
        return claim is None or "deletionTimestamp" in claim["metadata"]

    await world.eventually(going, timeout_s=120)


async def test_a_service_without_its_cache_any_more_asks_the_hub_and_its_pod_is_deleted(world):
    llama = await world.begun()
    await llama.change(lambda spec: spec["model"].pop("cache"))
    await world.operator.settle("llama")
    assert await world.pods() == []
    assert (await planned_engine(llama))["model"] == "org/llama"


async def test_a_model_that_is_looked_up_is_copied_at_the_commit_that_was_found(world):
    llama = await world.service(model={"uri": "hf://org/llama", "cache": world.made, "maxModelLen": 4096})
    await world.operator.settle("llama")
    assert await world.claim() is None

    async def inspecting():
        found = await world.kube.list(POD, world.namespace, label_selector="uellm.io/inspection=llama")
        return next((pod for pod in found if pod["status"].get("phase") == "Running"), None)

    pod = await world.eventually(inspecting)
    facts = facts_document(ModelFacts(COMMIT, CONFIG, llama_tensors(CONFIG), 4))
    world.operator.answers = {pod["status"]["podIP"]: facts}
    await world.operator.settle("llama")
    world.operator.answers = {}
    await world.tell(copied())
    assert await llama.condition("ModelAccessible") == (
        "True",
        "Found",
        "commit c0ffee000000: 15.0 GiB in 4 safetensors files; 12 files of 141 GB on claim llama-weights",
    )
    assert (await planned_engine(llama))["model"] == f"/models/org/llama/{COMMIT}"


async def test_the_pods_are_admitted_where_pod_security_is_restricted(world):
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": world.namespace, "labels": labels}
    await world.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, manager="user")
    llama = await world.begun()
    await world.tell(copied())
    assert len(await llama.children()) == 4


def freeing(pod):
    return [each for each in pod["spec"]["containers"][0]["args"] if each.startswith(("--free", "--keep"))]


@pytest.mark.timeout(180)
async def test_a_revision_that_changes_twice_may_take_the_room_of_the_one_in_between(world):
    llama = await world.serving()
    for commit in (LATER, "fade" + "0" * 36):
        await llama.change(lambda spec, commit=commit: spec["model"].update(revision=commit))
        await world.operator.settle("llama")
        as_of = f"--keep-as-of={world.operator.now.timestamp():.0f}"
        assert freeing(await world.running()) == ["--free", as_of, f"--keep=org/llama/{COMMIT}"]


async def test_nothing_is_deleted_from_a_claim_of_the_user_s(world):
    await world.service(model=model(cache={"claimName": "models"}))
    await world.operator.settle("llama")
    (pod,) = await world.pods()
    assert freeing(pod) == []


async def test_engines_write_compiled_code_beside_the_weights_where_the_pod_has_made_a_place(world):
    llama = await world.begun()
    await world.tell(copied()._replace(compiled=".compiled/llama"))
    mounts = (await llama.deployment())["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "model", "mountPath": "/var/cache/uellm-compiled", "subPath": ".compiled/llama"} in mounts


async def test_a_pod_that_names_another_place_for_compiled_code_is_not_believed(world):
    llama = await world.begun()
    await world.tell(copied()._replace(compiled="../elsewhere"))
    mounts = (await llama.deployment())["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert [each for each in mounts if "subPath" in each] == []


@pytest.mark.timeout(180)
async def test_an_adapter_of_the_hub_is_served_once_its_copy_is_complete_and_replaces_no_pods(world):
    llama = await world.begun(adapters=[{"name": "sql", "uri": "hf://org/sql"}], answered=(adapter("sql"),))
    assert f"--adapter=sql=hf://org/sql@{COMMIT}" in (await world.running())["spec"]["containers"][0]["args"]
    assert await llama.children() == []
    await world.tell(copied())
    assert await told(world) == {"sql": f"/models/org/sql/{COMMIT}"}
    before = (await llama.status())["revision"]
    both = [{"name": name, "uri": f"hf://org/{name}"} for name in ("sql", "chat")]
    await llama.change(lambda spec: spec["model"].update(adapters=both))
    await world.answered(adapter("sql"), adapter("chat"))
    assert await told(world) == {"sql": f"/models/org/sql/{COMMIT}"}
    assert (await llama.condition("ModelAccessible"))[1] == "ModelDownloading"
    await world.tell(copied())
    assert await told(world) == {name: f"/models/org/{name}/{COMMIT}" for name in ("sql", "chat")}
    assert (await llama.status())["revision"] == before


def adapter(name):
    """What the inspection pod finds of an adapter."""
    hidden = CONFIG["hidden_size"]
    return AdapterFacts(name, f"hf://org/{name}@main", COMMIT, 16, 1000, "", 2, (("q_proj", hidden, hidden),))


async def told(world):
    """The paths of the adapters that the sidecars are told of."""
    config = await world.kube.get(CONFIGMAP, "llama-config", world.namespace)
    return {each["name"]: each["path"] for each in yaml.safe_load(config["data"]["sidecar.yaml"]).get("adapters", ())}
