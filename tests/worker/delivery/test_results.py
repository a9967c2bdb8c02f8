from types import SimpleNamespace

from celery.worker import control, state

from api_client.wire.broker import celery_app
from api_client.wire.settings import Settings


def test_of_what_is_withdrawn_redis_is_asked_and_told_nothing(valkey_url, prefix, store):
    app = celery_app(Settings.read(redis_url=valkey_url, key_prefix=prefix))
    app.backend_cls = f"worker.delivery.results:Backend+{app.backend_cls}"
    store.config_resetstat()
    withdrawn = {"a", "b"}
    control._revoke(SimpleNamespace(app=app), withdrawn)
    assert withdrawn <= set(state.revoked)
    for request_id in withdrawn:
        state.revoked.discard(request_id)
    assert not {"cmdstat_get", "cmdstat_setex"} & set(store.info("commandstats"))
    app.close()
