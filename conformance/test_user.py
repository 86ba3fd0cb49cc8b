"""The account behind a key."""

import pytest

pytestmark = pytest.mark.contract


def test_users_me(daemon):
    me = daemon.client(auto_start_session=False).get_current_user()
    assert me["email"] == "admin@localhost"
    assert isinstance(me["id"], int)
    assert isinstance(me["is_verified"], bool)


def test_a_further_account_is_another_tenant(daemon):
    made = daemon.account("further@example.com")
    assert set(made) >= {"account_id", "email", "api_key"}
    assert daemon.http(made["api_key"]).get("/v1/users/me").json()["email"] == "further@example.com"
    again = daemon.command("account", "create", "further@example.com", "--json")
    assert again.returncode != 0
    assert "further@example.com" in again.stderr


def test_a_disabled_account_is_401_at_once(daemon):
    made = daemon.account("leaving@example.com")
    http = daemon.http(made["api_key"])
    assert http.get("/v1/users/me").status_code == 200
    done = daemon.command("account", "disable", "leaving@example.com")
    assert done.returncode == 0, done.stderr
    assert http.get("/v1/users/me").status_code == 401


def test_accounts_are_listed_without_their_keys(daemon, http):
    done = daemon.command("account", "list", "--json")
    assert done.returncode == 0, done.stderr
    assert "admin@localhost" in done.stdout
    assert http.key not in done.stdout
