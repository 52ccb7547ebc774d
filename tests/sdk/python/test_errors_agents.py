"""Every refusal of the agents' tables. Nothing is stored, and an update changes nothing."""

from __future__ import annotations

import json

import pytest

from support.cases import Case, fill, refused, send

TOOLS = {"type": "agent_toolset_20260401"}
CUSTOM = {"type": "custom", "name": "t", "description": "d", "input_schema": {"type": "object"}}
MCP = {"type": "url", "name": "s", "url": "https://mcp.example.com/mcp"}
# Features of later work answer 400 or 501, and say which feature it is.
LATER = (400, 501)


def tool(**fields) -> dict:
    return {"tools": [{**CUSTOM, **fields}]}


def schema(**fields) -> dict:
    return tool(input_schema={"type": "object", **fields})


def config(**fields) -> dict:
    return {"tools": [{**TOOLS, "configs": [fields]}]}


def domains(key: str, *values: str, name: str = "web_fetch") -> dict:
    return config(name=name, **{key: list(values)})


# Each of these is added to a body that is fine without it; they hold on create, and most of them on update.
FIELDS: dict[str, tuple[dict, str | tuple[str, ...], int | tuple[int, ...]]] = {
    "name null": ({"name": None}, "name", 400),
    "name empty": ({"name": ""}, "name", 400),
    "name long": ({"name": "n" * 257}, ("name", "256"), 400),
    "name number": ({"name": 7}, "name", 400),
    "name NUL": ({"name": "a\0b"}, "name", 400),
    "model null": ({"model": None}, "model", 400),
    "model empty": ({"model": ""}, "model", 400),
    "model long": ({"model": "m" * 257}, "model", 400),
    "model number": ({"model": 5}, "model", 400),
    "model list": ({"model": ["m"]}, "model", 400),
    "model without id": ({"model": {"speed": "standard"}}, "id", 400),
    "model with an unknown field": ({"model": {"id": "m", "temperature": 1}}, "temperature", 400),
    "speed unknown": ({"model": {"id": "m", "speed": "warp"}}, "speed", 400),
    "effort unknown": ({"model": {"id": "m", "effort": "heroic"}}, "effort", 400),
    "effort object unknown": ({"model": {"id": "m", "effort": {"type": "heroic"}}}, "effort", 400),
    "effort object empty": ({"model": {"id": "m", "effort": {}}}, "effort", 400),
    "geo unknown": ({"model": {"id": "m", "inference_geo": "moon"}}, "inference_geo", 400),
    "description long": ({"description": "d" * 2049}, ("description", "2048"), 400),
    "description number": ({"description": 1}, "description", 400),
    "system long": ({"system": "s" * 100_001}, ("system", "100"), 400),
    "system list": ({"system": [{"type": "text", "text": "x"}]}, "system", 400),
    "unknown field": ({"temperature": 1}, "temperature", 400),
    "tools a map": ({"tools": {}}, "tools", 400),
    "tools of text": ({"tools": ["bash"]}, "tools", 400),
    "tool without a type": ({"tools": [{"name": "x"}]}, ("tools", "type"), 400),
    "tool of an unknown type": ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools", 400),
    "too many tools": ({"tools": [{**CUSTOM, "name": f"t{number}"} for number in range(257)]}, ("tools", "256"), 400),
    "two toolsets": ({"tools": [TOOLS, TOOLS]}, "agent_toolset_20260401", 400),
    "toolset with an unknown field": ({"tools": [{**TOOLS, "max_uses": 3}]}, "max_uses", 400),
    "config of an unknown tool": (config(name="browser"), "browser", 400),
    "config without a name": (config(enabled=True), "name", 400),
    "config twice": ({"tools": [{**TOOLS, "configs": [{"name": "bash"}, {"name": "bash"}]}]}, "bash", 400),
    "config of another type": (config(name="bash", type="read"), "type", 400),
    "config with an unknown field": (config(name="bash", sudo=True), "sudo", 400),
    "enabled as text": (config(name="bash", enabled="yes"), "enabled", 400),
    "policy unknown": (config(name="bash", permission_policy={"type": "never"}), "permission_policy", 400),
    "policy as text": (config(name="bash", permission_policy="always_ask"), "permission_policy", 400),
    "policy auto": (config(name="bash", permission_policy={"type": "auto"}), "auto", LATER),
    "default policy unknown": ({"tools": [{**TOOLS, "default_config": {"permission_policy": {"type": "x"}}}]}, "permission_policy", 400),
    "web setting on bash": (config(name="bash", allowed_domains=["example.com"]), "allowed_domains", 400),
    "both domain lists": (
        config(name="web_fetch", allowed_domains=["a.com"], blocked_domains=["b.com"]),
        "Only one of allowed_domains or blocked_domains may be set.", 400,
    ),
    "empty domain list": (
        domains("allowed_domains"),
        "allowed_domains: Empty list of domains is ambiguous. Provide at least one domain or null.", 400,
    ),
    "too many domains": (domains("allowed_domains", *(f"d{number}.com" for number in range(65))), ("allowed_domains", "64"), 400),
    "IP domain": (domains("allowed_domains", "10.0.0.1"), 'allowed_domains.0: IP addresses are not supported; provide a plain hostname like "example.com"', 400),
    "IPv6 domain": (domains("blocked_domains", "example.com", "[::1]"), "blocked_domains.1", 400),
    "domain with a scheme": (domains("allowed_domains", "https://example.com"), "allowed_domains.0", 400),
    "domain with a port": (domains("allowed_domains", "example.com:80"), "allowed_domains.0", 400),
    "domain with a wildcard": (domains("allowed_domains", "*.example.com"), "allowed_domains.0", 400),
    "domain with credentials": (domains("allowed_domains", "u:p@example.com"), "allowed_domains.0", 400),
    "domain with a path on fetch": (domains("allowed_domains", "example.com/blog"), "allowed_domains.0", 400),
    "domain with a query on search": (domains("allowed_domains", "example.com/a?b", name="web_search"), "allowed_domains.0", 400),
    "localhost": (domains("allowed_domains", "localhost"), "allowed_domains.0", 400),
    "internal domain": (domains("allowed_domains", "db.internal"), "allowed_domains.0", 400),
    "single label": (domains("allowed_domains", "com"), "allowed_domains.0", 400),
    "dashed label": (domains("allowed_domains", "-a.example.com"), "allowed_domains.0", 400),
    "unicode domain": (domains("allowed_domains", "b\u00fccher.example"), "allowed_domains.0", 400),
    "duplicate domain": (domains("allowed_domains", "example.com", "EXAMPLE.com"), "allowed_domains", 400),
    "content cap zero": (config(name="web_fetch", max_content_tokens=0), "max_content_tokens", 400),
    "location without a type": (config(name="web_search", user_location={"city": "X"}), "user_location", 400),
    "location with a bad zone": (config(name="web_search", user_location={"type": "approximate", "timezone": "Moon/Base"}), "timezone", LATER),
    "custom without a name": ({"tools": [{key: value for key, value in CUSTOM.items() if key != "name"}]}, "name", 400),
    "custom without a description": ({"tools": [{key: value for key, value in CUSTOM.items() if key != "description"}]}, "description", 400),
    "custom without a schema": ({"tools": [{key: value for key, value in CUSTOM.items() if key != "input_schema"}]}, "input_schema", 400),
    "custom name empty": (tool(name=""), "name", 400),
    "custom name long": (tool(name="n" * 129), "name", 400),
    "custom name with a blank": (tool(name="a b"), "name", 400),
    "custom name with a dot": (tool(name="a.b"), "name", 400),
    "custom name of a built-in tool": (tool(name="bash"), "bash", 400),
    "custom name with mcp__": (tool(name="mcp__x"), "mcp__", 400),
    "custom name with ant__": (tool(name="ant__x"), "ant__", 400),
    "custom twice": ({"tools": [CUSTOM, CUSTOM]}, "t", 400),
    "custom description empty": (tool(description=""), "description", 400),
    "custom description long": (tool(description="d" * 16_385), "description", 400),
    "custom with a policy": (tool(permission_policy={"type": "always_ask"}), "permission_policy", 400),
    "schema a list": (tool(input_schema=[]), "input_schema", 400),
    "schema of another type": (tool(input_schema={"type": "array"}), "input_schema", 400),
    "schema with oneOf": (schema(oneOf=[]), "oneOf", 400),
    "schema with anyOf": (schema(anyOf=[]), "anyOf", 400),
    "schema with allOf": (schema(allOf=[]), "allOf", 400),
    "schema with $ref": (schema(properties={"a": {"$ref": "#/x"}}), "$ref", 400),
    "schema with a deep $ref": (schema(properties={"a": {"items": {"properties": {"b": {"$ref": "#"}}}}}), "$ref", 400),
    "property with a blank": (schema(properties={"a b": {}}), "a b", 400),
    "property too long": (schema(properties={"p" * 65: {}}), "input_schema", 400),
    "required of numbers": (schema(required=[1]), "required", 400),
    "MCP toolset without a server": ({"tools": [{"type": "mcp_toolset", "mcp_server_name": "ghost"}]}, "ghost", LATER),
    "MCP server nobody uses": ({"mcp_servers": [MCP]}, "", LATER),
    "MCP server twice": ({"mcp_servers": [MCP, MCP], "tools": [{"type": "mcp_toolset", "mcp_server_name": "s"}]}, "", LATER),
    "MCP server of another type": ({"mcp_servers": [{**MCP, "type": "stdio"}]}, "", LATER),
    "MCP server without a name": ({"mcp_servers": [{"type": "url", "url": MCP["url"]}]}, "", LATER),
    "MCP server with a bad url": ({"mcp_servers": [{**MCP, "url": "ftp://x"}]}, "", LATER),
    "MCP servers, too many": ({"mcp_servers": [{**MCP, "name": f"s{number}"} for number in range(21)]}, "", LATER),
    "two MCP toolsets of one server": (
        {"mcp_servers": [MCP], "tools": [{"type": "mcp_toolset", "mcp_server_name": "s"}] * 2}, "", LATER,
    ),
    "skills without read": ({"skills": [{"type": "anthropic", "skill_id": "xlsx"}]}, "skill", 400),
    "skill of another type": ({"skills": [{"type": "wild", "skill_id": "x"}], "tools": [TOOLS]}, "skills", 400),
    "skill unknown": ({"skills": [{"type": "custom", "skill_id": "skill_none"}], "tools": [TOOLS]}, "skill_none", 400),
    "skill without an id": ({"skills": [{"type": "custom"}], "tools": [TOOLS]}, "skill", 400),
    "multiagent of another type": ({"multiagent": {"type": "swarm"}}, "swarm", 400),
    "roster empty": ({"multiagent": {"type": "coordinator", "agents": []}}, "multiagent.agents", 400),
    "roster missing": ({"multiagent": {"type": "coordinator"}}, "agents", 400),
    "roster of nobody": ({"multiagent": {"type": "coordinator", "agents": ["agent_01" + "1" * 22]}}, "agents[0]", 400),
    "roster of no id": ({"multiagent": {"type": "coordinator", "agents": ["ghost"]}}, "ghost", 400),
    "roster of itself twice": ({"multiagent": {"type": "coordinator", "agents": [{"type": "self"}] * 2}}, "itself", 400),
    "roster of a stranger": ({"multiagent": {"type": "coordinator", "agents": [{"type": "human"}]}}, "human", 400),
    "two advisors": ({"multiagent": {"type": "coordinator", "agents": [{"type": "advisor", "model": "m"}] * 2}}, "advisor", 400),
    "nobody to delegate to": (
        {"multiagent": {"type": "multiagent_20261001", "subagents": {"type": "enabled", "inline_agents": {"type": "disabled"}}}},
        "multiagent.subagents", 400,
    ),
    "advisor without a model": ({"multiagent": {"type": "multiagent_20261001", "advisor": {"type": "enabled"}}}, "model", 400),
    "custom tool named like a coordinator's": (
        {**tool(name="create_agent"), "multiagent": {"type": "coordinator", "agents": [{"type": "self"}]}}, "create_agent", 400,
    ),
    "another identity": ({"execution_identity": {"type": "aws_role", "role_arn": "arn:aws:iam::1:role/x"}}, "aws_role", LATER),
    "an unknown identity": ({"execution_identity": {"type": "ghost"}}, "execution_identity", 400),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_create(raw, mock, name) -> None:
    fields, fragment, status = FIELDS[name]
    body = {"name": "agent", "model": "m", "metadata": {"mark": mock.model}, **fields}
    refused(raw.post("/v1/agents", json=body), Case(name, status=status, fragment=fragment))
    listed = raw.get("/v1/agents", params={"limit": 100, "include_archived": "true"}).json()["data"]
    assert mock.model not in json.dumps(listed)


@pytest.mark.parametrize("name", FIELDS)
def test_update(raw, mock, name) -> None:
    fields, fragment, status = FIELDS[name]
    agent = raw.post("/v1/agents", json={"name": "agent", "model": mock.model, "tools": [CUSTOM | {"name": "kept"}]}).json()
    path = f"/v1/agents/{agent['id']}"
    response = raw.post(path, json={"metadata": {"mark": "x"}, **fields})
    refused(response, Case(name, status=status, fragment=fragment))
    assert raw.get(path).json() == agent
    assert [each["version"] for each in raw.get(f"{path}/versions").json()["data"]] == [1]


@pytest.mark.parametrize("missing", ["name", "model"])
def test_required(raw, mock, missing) -> None:
    body = {"name": "agent", "model": "m", "metadata": {"mark": mock.model}}
    del body[missing]
    refused(raw.post("/v1/agents", json=body), Case(missing, fragment=missing))
    assert mock.model not in raw.get("/v1/agents", params={"limit": 100}).text


CASES = [
    Case("retrieve unknown version", "GET", "/v1/agents/{agent}", query="version=99", status=404),
    Case("retrieve version 0", "GET", "/v1/agents/{agent}", query="version=0", fragment="version"),
    Case("retrieve version -1", "GET", "/v1/agents/{agent}", query="version=-1", fragment="version"),
    Case("retrieve version text", "GET", "/v1/agents/{agent}", query="version=latest", fragment="version"),
    Case("retrieve version huge", "GET", "/v1/agents/{agent}", query="version=99999999999999999999", status=(400, 404)),
    Case("update version 0", path="/v1/agents/{agent}", body={"version": 0, "name": "x"}, fragment="version"),
    Case("update version -1", path="/v1/agents/{agent}", body={"version": -1, "name": "x"}, fragment="version"),
    Case("update version text", path="/v1/agents/{agent}", body={"version": "1", "name": "x"}, fragment="version"),
    Case("update version fraction", path="/v1/agents/{agent}", body={"version": 1.5, "name": "x"}, fragment="version"),
    Case("update another version", path="/v1/agents/{agent}", body={"version": 2, "name": "x"}, status=409, fragment="version"),
    Case("update another version without a change", path="/v1/agents/{agent}", body={"version": 7}, status=409, fragment="version"),
    Case("update too much metadata", path="/v1/agents/{agent}", body={"metadata": {f"k{n}": "v" for n in range(16)}}, fragment="metadata"),
    Case("update archived", path="/v1/agents/{archived}", body={"name": "x"}, fragment="archived"),
    Case("update unknown", path="/v1/agents/agent_011111111111111111111111", body={"name": "x"}, status=404),
    Case("archive unknown", path="/v1/agents/agent_011111111111111111111111/archive", status=404),
    Case("versions of unknown", "GET", "/v1/agents/agent_011111111111111111111111/versions", status=404),
    Case("list by gt", "GET", "/v1/agents", query="created_at[gt]=2026-01-01T00:00:00Z", fragment="created_at[gt]"),
    Case("list by name", "GET", "/v1/agents", query="name=x", fragment="name"),
    Case("list with order", "GET", "/v1/agents", query="order=asc", fragment="order"),
    Case("versions with archived", "GET", "/v1/agents/{agent}/versions", query="include_archived=true", fragment="include_archived"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_table(raw, mock, case) -> None:
    agent = raw.post("/v1/agents", json={"name": "a", "model": mock.model, "metadata": {"own": "1"}}).json()
    archived = raw.post("/v1/agents", json={"name": "b", "model": mock.model}).json()["id"]
    raw.post(f"/v1/agents/{archived}/archive")
    names = {"agent": agent["id"], "archived": archived}
    before = [raw.get(f"/v1/agents/{each}").json() for each in names.values()]
    refused(send(raw, case, names), case, names)
    assert before == [raw.get(f"/v1/agents/{each}").json() for each in names.values()]


def test_clearing_tools_that_others_need(raw, mock) -> None:
    """Cross-field rules are checked on what results, not on what was sent."""
    body = {"name": "a", "model": mock.model, "mcp_servers": [MCP], "tools": [{"type": "mcp_toolset", "mcp_server_name": "s"}]}
    response = raw.post("/v1/agents", json=body)
    if response.status_code == 501:
        refused(response, Case("MCP", status=501, fragment="mcp"))
        return
    agent = response.json()
    for fields in ({"tools": []}, {"mcp_servers": []}, {"mcp_servers": None}):
        refused(raw.post(f"/v1/agents/{agent['id']}", json=fields), Case(str(fields)))
    assert raw.get(f"/v1/agents/{agent['id']}").json() == agent


def test_limits_that_are_still_fine(raw, mock) -> None:
    """The control: the largest values that the tables allow."""
    body = fill(
        {
            "name": "n" * 256,
            "model": "{model}",
            "description": "d" * 2048,
            "system": "s" * 100_000,
            "tools": [TOOLS] + [{**CUSTOM, "name": f"t{number}", "description": "d" * 16_384 if number == 0 else "d"} for number in range(255)],
            "metadata": {f"{number:02}".ljust(64, "k"): "v" * 512 for number in range(16)},
        },
        {"model": mock.model},
    )
    assert raw.post("/v1/agents", json=body).status_code == 200
