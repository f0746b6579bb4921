"""Words of others about pods that wait: a pass goes on without those that come late."""

from __future__ import annotations

import asyncio

from uellm.reconcile import apply as module
from uellm.reconcile.apply import Applier
from uellm.reconcile.cache import Cache

POD = {"metadata": {"name": "llama-0", "namespace": "default", "uid": "u", "labels": {}}}


class Silent:
    """An API server that answers no list."""

    async def list(self, *_, **__):
        await asyncio.Event().wait()


async def test_words_that_do_not_come_hold_no_pass_up_however_many_are_asked_for(monkeypatch, caplog):
    monkeypatch.setattr(module, "EXPLAINED_WITHIN_S", 0.1)
    applier = Applier(Silent(), Cache())

    events = await asyncio.gather(*(applier.pod_events(POD) for _ in range(20)))
    workloads = await applier.workloads(POD)

    assert (events, workloads) == ([()] * 20, None)
    assert "no Events about pod llama-0" in caplog.text
    assert caplog.text.count("not read within 0.1 s") == 21
