"""API keys: shown once, revoked at once."""

import pytest

from instavm import AuthenticationError

pytestmark = pytest.mark.contract


@pytest.fixture
def manager(daemon):
    return daemon.client(auto_start_session=False)


def test_a_key_is_shown_once_and_works(manager, daemon):
    made = manager.api_keys.create(description="ci")
    assert made["api_key"].startswith("instavm_sk_")
    assert isinstance(made["id"], int)
    assert made["description"] == "ci"
    listed = manager.api_keys.list()
    assert isinstance(listed, list)
    record = next(item for item in listed if item["id"] == made["id"])
    assert "api_key" not in record and made["api_key"] not in str(listed)
    assert made["api_key"].startswith(record["key_prefix"])
    assert "api_key" not in manager.api_keys.get(made["id"])
    assert daemon.client(api_key=made["api_key"], auto_start_session=False).get_current_user()["email"] == "admin@localhost"
    manager.api_keys.delete(made["id"])


@pytest.mark.parametrize("way", ["delete", "deactivate"])
def test_revocation_is_effective_at_once(manager, daemon, way):
    made = manager.api_keys.create(description="short")
    other = daemon.client(api_key=made["api_key"], auto_start_session=False)
    other.get_current_user()
    if way == "delete":
        manager.api_keys.delete(made["id"])
        assert made["id"] not in {item["id"] for item in manager.api_keys.list() if item["is_active"]}
    else:
        assert manager.api_keys.update(made["id"], is_active=False)["is_active"] is False
    with pytest.raises(AuthenticationError):
        other.get_current_user()


def test_the_description_can_be_changed(manager):
    made = manager.api_keys.create(description="one")
    assert manager.api_keys.update(made["id"], description="two")["description"] == "two"
    assert manager.api_keys.get(made["id"])["description"] == "two"
    manager.api_keys.delete(made["id"])


def test_both_slash_forms_answer_directly(http):
    for path in ("/v1/api-keys/", "/v1/api-keys"):
        answer = http.get(path, allow_redirects=False)
        assert answer.status_code == 200 and isinstance(answer.json(), list)


def test_unknown_and_foreign_keys_are_404(manager, tenant, http):
    made = manager.api_keys.create(description="mine")
    for caller, key_id in ((http, 999_999_999), (http, "text"), (tenant, made["id"])):
        assert caller.get(f"/v1/api-keys/{key_id}").status_code == 404
        assert caller.patch(f"/v1/api-keys/{key_id}", {"description": "x"}).status_code == 404
        assert caller.delete(f"/v1/api-keys/{key_id}").status_code == 404
    manager.api_keys.delete(made["id"])


def test_keys_are_not_in_the_data_directory(manager, daemon):
    made = manager.api_keys.create(description="hashed")
    secret = made["api_key"].encode()
    held = [
        path
        for path in daemon.data_dir.iterdir()
        if path.is_file() and path.stat().st_size < 1 << 28 and secret in path.read_bytes()
    ]
    assert held == []
    assert secret not in daemon.log_path.read_bytes()
    manager.api_keys.delete(made["id"])


def test_the_first_key_is_private_to_its_owner(daemon):
    assert (daemon.data_dir / "admin-key").stat().st_mode & 0o777 == 0o600
