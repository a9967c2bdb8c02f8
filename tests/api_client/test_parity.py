"""The twins and the fakes have the same calls with the same arguments."""

from inspect import getmembers, isfunction, signature

import pytest

from api_client.aio import AsyncClient, AsyncHandle
from api_client.client import Client, Handle
from api_client.reembed.job import AsyncJob, Job
from api_client.testing import FakeAsyncClient, FakeClient


def calls(kind):
    return {
        name: [(p.name, p.kind, p.default, p.annotation) for p in signature(f).parameters.values()]
        for name, f in getmembers(kind, isfunction)
        if not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("mine", "twin"),
    [
        (AsyncClient, Client),
        (AsyncHandle, Handle),
        (AsyncJob, Job),
        (FakeClient, Client),
        (FakeAsyncClient, AsyncClient),
    ],
)
def test_twins_have_the_same_calls_with_the_same_arguments(mine, twin):
    assert calls(mine) == calls(twin)


@pytest.mark.parametrize("kind", [Client, AsyncClient, Handle, AsyncHandle, Job, AsyncJob])
def test_every_call_says_what_it_does(kind):
    assert all(f.__doc__ for name, f in getmembers(kind, isfunction) if not name.startswith("_"))
