from api_client.gateway import child


def test_the_gateway_of_a_stack_is_shown_where_the_settings_let_it_listen(monkeypatch):
    assert child.extra().address == "http://127.0.0.1:7000"
    monkeypatch.setenv("CLIPYARD_GATEWAY_PORT", "7001")
    assert child.extra().address == "http://127.0.0.1:7001"


def test_its_logs_are_where_up_was_called(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert child.extra().env == {}
    monkeypatch.setenv("CLIPYARD_LOG_DIR", "logs")
    assert child.extra().env == {"CLIPYARD_LOG_DIR": str(tmp_path / "logs")}
