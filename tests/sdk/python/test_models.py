"""Models: the list that fills pickers."""

from __future__ import annotations

import anthropic
import pytest

from support.registry import covers


@covers("models.list", "models.retrieve", "beta.models.list", "beta.models.retrieve")
def test_list_and_retrieve(client) -> None:
    for models in (client.models, client.beta.models):
        listed = list(models.list(limit=1))
        assert listed, "there is at least one model"
        assert len({model.id for model in listed}) == len(listed)
        model = models.retrieve(listed[0].id)
        assert model.id == listed[0].id and model.type == "model" and model.display_name
    page = client.models.list(limit=1000)
    assert [model.id for model in page.data] == [model.id for model in client.models.list(limit=2)]
    assert page.has_more is False and page.first_id == page.data[0].id and page.last_id == page.data[-1].id
    if len(page.data) > 1:
        back = client.models.list(limit=1, before_id=page.data[1].id)
        assert [model.id for model in back.data] == [page.data[0].id]


def test_unknown_model(client) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("no-such-model")


def test_no_beta_header_is_needed(server) -> None:
    import httpx2

    response = httpx2.get(f"{server.url}/v1/models", headers={"x-api-key": server.key, "anthropic-version": "2023-06-01"})
    assert response.status_code == 200 and response.json()["data"]
