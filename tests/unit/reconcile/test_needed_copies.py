"""Which copies on a claim stay when others make room."""

from __future__ import annotations

import json

import yaml

from uellm.hub.copy_state import Copied
from uellm.reconcile.download.kept_copy import copy_configmap
from uellm.reconcile.download.needed import needed_copies

A, B, C, D = (f"org/model/{letter * 40}" for letter in "abcd")


def revisions(**models):
    """Revisions by name, with the model that their engines are started with."""
    return {
        f"llama-{name}": {"data": {"plan.json": json.dumps({"engine": {"model": model}})}}
        for name, model in models.items()
    }


def labelled(revision, **more):
    return {"metadata": {"name": f"x-{revision}", "labels": {"uellm.io/revision": revision}}, **more}


def owner(revision, replicas=1):
    return {"spec": {"replicas": replicas, "template": labelled(revision)}}


def service(make, *, uri="hf://org/model", adapters=(), revision=None):
    document = make.service(model={"uri": uri, "adapters": list(adapters)})
    return document | {"status": {"revision": revision}}


def test_what_a_pod_a_deployment_or_a_replicaset_runs_is_needed_and_what_is_kept_for_a_rollback_is_not(make):
    known = revisions(r1=f"/models/{A}", r2=f"/models/{B}", r3=f"/models/{C}", r4=f"/models/{D}")
    found = needed_copies(service(make), known, owner("r1", 0), [labelled("r2")], [owner("r3", 1), owner("r4", 0)])
    assert found - {""} == {A, B, C}


def test_the_revision_of_the_status_and_the_copy_noted_last_are_needed(make):
    document = service(make, revision="r1")
    noted = copy_configmap(document, "digest", Copied("b" * 40, B, 1, 2))
    known = {**revisions(r1=f"/models/{A}"), "llama-weights": noted}
    assert needed_copies(document, known, None, [], []) - {""} == {A, B}


def test_adapters_that_were_copied_are_needed_before_any_sidecar_is_told_of_them(make):
    noted = copy_configmap(service(make), "digest", Copied("b" * 40, B, 1, 2), [C, D])
    assert needed_copies(service(make), {"llama-weights": noted}, None, [], []) - {""} == {B, C, D}


def test_a_model_on_the_claim_of_another_service_is_needed_before_it_has_a_revision(make):
    assert needed_copies(service(make, uri=f"pvc://other-weights/{A}"), {}, None, [], []) - {""} == {A}


def test_adapters_on_claims_and_models_of_other_claims_are_needed(make):
    document = service(
        make, adapters=[{"name": "sql", "uri": f"pvc://llama-weights/{C}/"}, {"name": "x", "uri": "hf://a/b"}]
    )
    assert needed_copies(document, revisions(r1=f"/models/{A}"), owner("r1"), [], []) - {""} == {A, C}


def test_adapters_that_sidecars_are_told_of_are_needed(make):
    told = yaml.safe_dump({"adapters": [{"name": "sql", "source": "hf://org/sql@main", "path": f"/models/{C}"}]})
    known = {**revisions(r1=f"/models/{A}"), "llama-config": {"data": {"sidecar.yaml": told}}}
    assert needed_copies(service(make), known, owner("r1"), [], []) - {""} == {A, C}


def test_adapters_of_both_revisions_of_a_rollout_are_needed(make):
    sql = {"name": "sql", "source": "hf://org/sql@main"}
    of_new = {"revision": "r2", "adapters": [{**sql, "path": f"/models/{D}"}]}
    told = yaml.safe_dump({"adapters": [{**sql, "path": f"/models/{C}"}], "revisionAdapters": [of_new]})
    known = {**revisions(r1=f"/models/{A}"), "llama-config": {"data": {"sidecar.yaml": told}}}
    assert needed_copies(service(make), known, owner("r1"), [], []) - {""} == {A, C, D}


def test_nothing_is_known_where_a_revision_is_missing_or_cannot_be_read(make):
    assert needed_copies(service(make), {}, owner("r1"), [], []) is None
    broken = {"llama-r1": {"data": {"plan.json": "{}"}}}
    assert needed_copies(service(make), broken, None, [labelled("r1")], []) is None


def test_a_model_that_is_on_no_claim_needs_no_copy(make):
    assert needed_copies(service(make), revisions(r1="org/model"), owner("r1"), [], []) - {""} == set()
