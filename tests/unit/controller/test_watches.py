"""The watches of kinds that every cluster has: what the operator says where it may not read one of them."""

from __future__ import annotations

import asyncio

import pytest

from uellm.controller import resync
from uellm.controller.watcher import Watcher
from uellm.controller.watches import OWN_KINDS, Watches
from uellm.errors import CannotBeDone
from uellm.kube import SYNCED, Event, Forbidden
from uellm.kube.kinds import DEPLOYMENT, NODE, POD
from uellm.reconcile.cache import Cache

REFUSED = Forbidden(
    403,
    "Forbidden",
    'deployments.apps is forbidden: User "system:serviceaccount:uellm:uellm-operator" cannot watch resource '
    '"deployments" in API group "apps" at the cluster scope',
)


class OneForbidden:
    """Stands in for `Kube`: one kind stays forbidden, all others are empty."""

    def __init__(self, forbidden):
        self.forbidden = forbidden
        self.limits = []

    async def watch(self, kind, *, forbidden_s, **_):
        self.limits.append(forbidden_s)
        if kind == self.forbidden:
            raise REFUSED
        yield Event(SYNCED, {})
        await asyncio.Event().wait()

    async def list(self, kind, **_):
        if kind == self.forbidden:
            raise REFUSED
        return []


def watches_of(kube):
    return Watches(kube, Watcher(Cache(), lambda key, after_s: None, list), forbidden_s=5.0)


async def test_a_kind_that_stays_forbidden_ends_the_wait_with_the_right_that_is_missing():
    kube = OneForbidden(DEPLOYMENT)
    watches = watches_of(kube)
    tasks = [asyncio.ensure_future(each) for each in (*watches.follow(), watches.synced())]
    done, pending = await asyncio.wait(tasks, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    for each in pending:
        each.cancel()
    (ended,) = done
    with pytest.raises(CannotBeDone) as error:
        ended.result()
    message = str(error.value)
    assert message.startswith(
        "the operator may not watch deployments.apps in the whole cluster: add the verbs list and"
    )
    assert "to the ClusterRole of its ServiceAccount, in the chart RELEASE-operator" in message
    assert 'User "system:serviceaccount:uellm:uellm-operator"' in message
    assert "\n" not in message
    assert kube.limits == [5.0] * len(OWN_KINDS)


async def test_kinds_that_may_be_read_are_waited_for():
    watches = watches_of(OneForbidden(None))
    tasks = [asyncio.ensure_future(each) for each in watches.follow()]
    async with asyncio.timeout(10):
        await watches.synced()
    for each in tasks:
        each.cancel()


@pytest.mark.parametrize("kind", [NODE, POD])
async def test_a_full_list_that_is_forbidden_names_the_right_too(kind):
    with pytest.raises(CannotBeDone, match=f"may not (list|watch).* {kind.plural} in the whole cluster"):
        await resync.fill_patiently(OneForbidden(kind), Cache(), [kind])
