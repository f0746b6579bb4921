from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from uellm.kube import CONFIGMAP, Forbidden, Kube, NotFound


async def take(kube: Kube, count: int, **options) -> list[tuple[str, str]]:
    taken = []
    async with aclosing(kube.watch(CONFIGMAP, namespace="default", **options)) as events:
        async for event in events:
            taken.append((event.type, event.object.get("metadata", {}).get("name", "")))
            if len(taken) == count:
                return taken
    raise AssertionError("a watch never ends by itself")


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_the_first_list_comes_as_added_then_synced_then_the_changes(server, kube, scripts):
    server.script = [
        scripts.lists("10", scripts.config_map("a", "1"), scripts.config_map("b", "2")),
        scripts.streams(("MODIFIED", scripts.config_map("a", "11")), ("DELETED", scripts.config_map("b", "12"))),
    ]
    assert await take(kube, 5) == [("ADDED", "a"), ("ADDED", "b"), ("SYNCED", ""), ("MODIFIED", "a"), ("DELETED", "b")]
    assert server.requests[1].query["resourceVersion"] == "10"
    assert server.requests[1].query["allowWatchBookmarks"] == "true"


async def test_a_watch_that_ended_goes_on_from_the_last_bookmark_without_a_list(server, kube, scripts):
    server.script = [
        scripts.lists("10"),
        scripts.streams(("BOOKMARK", {"kind": "ConfigMap", "metadata": {"resourceVersion": "20"}})),
        scripts.streams(("ADDED", scripts.config_map("a", "21")), then=for_ever),
    ]
    assert await take(kube, 2) == [("SYNCED", ""), ("ADDED", "a")]
    assert [request.query.get("resourceVersion") for request in server.requests] == [None, "10", "20"]


async def test_after_gone_the_second_list_yields_only_the_differences(server, kube, scripts):
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
    server.script = [
        scripts.lists("10", *(scripts.config_map(name, "1") for name in ("same", "changed", "vanished"))),
        scripts.streams(("ERROR", gone)),
        scripts.lists(
            "30", scripts.config_map("same", "1"), scripts.config_map("changed", "25"), scripts.config_map("new", "26")
        ),
        scripts.streams(then=for_ever),
    ]
    assert (await take(kube, 7))[4:] == [("DELETED", "vanished"), ("MODIFIED", "changed"), ("ADDED", "new")]


async def test_an_object_recreated_unseen_is_reported_as_deleted_and_added(server, kube, scripts):
    anew = scripts.config_map("a", "20")
    anew["metadata"]["uid"] = "another"
    server.script = [
        scripts.lists("10", scripts.config_map("a", "1")),
        scripts.refuses(410, "Gone"),
        scripts.lists("30", anew),
        scripts.streams(then=for_ever),
    ]
    assert (await take(kube, 4))[2:] == [("DELETED", "a"), ("ADDED", "a")]


async def test_an_object_deleted_unseen_is_reported_with_its_identity(server, kube, scripts):
    owned = scripts.config_map("a", "1", data="large")
    owned["metadata"] |= {"labels": {"l": "v"}, "ownerReferences": [{"uid": "o"}], "annotations": {"x": "y"}}
    server.script = [scripts.lists("10", owned), scripts.refuses(410, "Gone"), scripts.lists("30")]
    async with aclosing(kube.watch(CONFIGMAP)) as events:
        deleted = [event async for event in take_until(events, "DELETED")][-1]
    assert deleted.object == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "a",
            "namespace": "default",
            "uid": "uid-a",
            "resourceVersion": "1",
            "labels": {"l": "v"},
            "ownerReferences": [{"uid": "o"}],
        },
    }


async def take_until(events, kind):
    async for event in events:
        yield event
        if event.type == kind:
            return


async def test_a_silent_connection_is_closed_and_the_next_one_catches_up(server, kube, scripts):
    server.script = [
        scripts.lists("10"),
        scripts.streams(then=for_ever),
        scripts.lists("12", scripts.config_map("a", "11")),  # a list only for its resource version
        scripts.streams(("ADDED", scripts.config_map("a", "11")), then=for_ever),
    ]
    assert await take(kube, 2, silence_s=0.05) == [("SYNCED", ""), ("ADDED", "a")]
    assert server.requests[2].query["limit"] == "1"
    assert server.requests[3].query["resourceVersion"] == "10"


@pytest.mark.parametrize("version_now", ["10", "not a number"])
async def test_a_silent_watch_lists_again_if_the_server_lost_its_history(server, kube, scripts, version_now):
    server.script = [
        scripts.lists("1000", scripts.config_map("a", "900")),
        scripts.streams(),
        scripts.lists(version_now, scripts.config_map("a", "7")),
        scripts.lists(version_now, scripts.config_map("a", "7")),
        scripts.streams(then=for_ever),
    ]
    assert (await take(kube, 3))[2] == ("MODIFIED", "a")


async def test_every_kind_of_error_is_retried(server, kube, scripts):
    server.script = [
        scripts.refuses(403, "Forbidden"),
        scripts.refuses(429, "TooManyRequests"),
        scripts.lists("10"),
        scripts.refuses(500, "InternalError"),
        scripts.says("no event"),
        scripts.refuses(503),
        scripts.lists("10"),
        scripts.says({"type": "ADDED", "object": None}),
        scripts.lists("10"),
        scripts.streams(("ADDED", scripts.config_map("a", "11")), then=for_ever),
    ]
    assert await take(kube, 2) == [("SYNCED", ""), ("ADDED", "a")]


async def test_an_object_longer_than_any_buffer_arrives_whole(server, kube, scripts):
    huge = scripts.config_map("a", "11", blob="x" * 5_000_000)
    server.script = [scripts.lists("10"), scripts.streams(("ADDED", huge), then=for_ever)]
    async with aclosing(kube.watch(CONFIGMAP)) as events:
        added = [event async for event in take_until(events, "ADDED")][-1]
    assert len(added.object["data"]["blob"]) == 5_000_000


async def test_contact_is_reported_on_every_list_renewal_and_event(server, kube, scripts):
    contacts = []
    server.script = [
        scripts.lists("10"),
        scripts.streams(("BOOKMARK", {"metadata": {"resourceVersion": "11"}})),
        scripts.refuses(503),
        scripts.streams(("ADDED", scripts.config_map("a", "12")), then=for_ever),
    ]
    await take(kube, 2, on_contact=lambda: contacts.append(len(server.requests)))
    assert contacts == [1, 2, 2, 4, 4]


async def test_lists_are_read_page_by_page(server, kube, scripts):
    page = {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"continue": "more", "resourceVersion": "10"}}
    server.script = [
        scripts.says({**page, "items": [{"metadata": {"name": "a"}}]}),
        scripts.lists("10", scripts.config_map("b", "1")),
    ]
    objects = await kube.list(CONFIGMAP, label_selector="x=y", field_selector="metadata.name!=c")
    assert [(obj["kind"], obj["apiVersion"], obj["metadata"]["name"]) for obj in objects] == [
        ("ConfigMap", "v1", "a"),
        ("ConfigMap", "v1", "b"),
    ]
    assert server.requests[1].query["continue"] == "more"
    assert server.requests[1].query["labelSelector"] == "x=y"
    assert server.requests[1].query["fieldSelector"] == "metadata.name!=c"
    assert "resourceVersion" not in server.requests[0].query


async def test_a_list_from_the_servers_memory_names_a_version_on_its_first_page_alone(server, kube, scripts):
    page = {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"continue": "more", "resourceVersion": "10"}}
    server.script = [scripts.says({**page, "items": []}), scripts.lists("10", scripts.config_map("b", "1"))]
    assert len(await kube.list(CONFIGMAP, cached=True)) == 1
    assert server.requests[0].query["resourceVersion"] == "0"
    assert "resourceVersion" not in server.requests[1].query  # a server refuses it beside a token


@pytest.mark.parametrize(("status", "error"), [(404, NotFound), (403, Forbidden)])
async def test_the_watch_of_a_kind_that_may_be_missing_ends_when_it_is(server, kube, scripts, status, error):
    server.script = [scripts.lists("10"), scripts.refuses(503), scripts.refuses(status)]
    with pytest.raises(error):
        await take(kube, 2, optional=True)
    assert len(server.requests) == 3


async def test_a_watch_that_was_never_allowed_ends_after_its_patience(server, kube, scripts):
    server.script = [scripts.refuses(503), scripts.lists("10"), scripts.refuses(403)]
    with pytest.raises(Forbidden):
        await take(kube, 2, forbidden_s=0.0)
    assert len(server.requests) == 3


async def test_a_watch_that_has_worked_outlives_a_refusal(server, kube, scripts):
    server.script = [
        scripts.lists("10"),
        scripts.streams(("ADDED", scripts.config_map("a", "11"))),
        scripts.refuses(403),
        scripts.streams(("ADDED", scripts.config_map("b", "12")), then=for_ever),
    ]
    assert await take(kube, 3, forbidden_s=0.0) == [("SYNCED", ""), ("ADDED", "a"), ("ADDED", "b")]


async def test_who_wants_to_know_of_refusals_is_told_of_each_and_they_are_not_logged(server, kube, scripts, caplog):
    server.script = [
        scripts.refuses(403, "Forbidden"),
        scripts.refuses(404, "NotFound"),
        scripts.refuses(503),
        scripts.lists("10"),
        scripts.streams(then=for_ever),
    ]
    refused: list[int] = []
    assert await take(kube, 1, on_refused=lambda error: bool(refused.append(error.status))) == [("SYNCED", "")]
    assert refused == [403, 404]
    assert [record.levelname for record in caplog.records if record.name == "uellm.kube.watch"] == ["WARNING"]


async def test_who_is_told_of_refusals_may_have_everything_deleted_and_it_comes_again_when_it_may_be_read(
    server, kube, scripts
):
    server.script = [
        scripts.lists("10", scripts.config_map("a", "1"), scripts.config_map("b", "2")),
        scripts.refuses(403, "Forbidden"),
        scripts.refuses(403, "Forbidden"),
        scripts.lists("20", scripts.config_map("a", "1")),
        scripts.streams(then=for_ever),
    ]
    taken = await take(kube, 6, on_refused=lambda _: True)
    assert taken[3:] == [("DELETED", "a"), ("DELETED", "b"), ("ADDED", "a")]
