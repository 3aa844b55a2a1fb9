"""The tunnel's configuration against each of the tunnel's rules, and how it is made of services."""

from typing import Any

import pytest

from agentctl.exit_codes import CommandError
from agentctl.services.tunnel import faults, tunnel_config

CATCH_ALL = {"service": "http_status:404"}
FINE = {"hostname": "hooks.example.org", "service": "http://127.0.0.1:3001"}


def with_rules(*rules: Any, **more: Any) -> dict[str, Any]:
    return {"tunnel": "t", "credentials-file": "c", "ingress": [*rules, CATCH_ALL], **more}


ALLOWED = {
    "nothing but the last rule": with_rules(),
    "an exact host name": with_rules(FINE),
    "a path of Go": with_rules({**FINE, "path": r"^/(api|v\d{1,3})/.*\.json$"}),
    "a path before none": with_rules({**FINE, "path": "/api"}, FINE),
    "a path for all names": with_rules({"path": "/health", "service": "http://127.0.0.1:1"}),
    "a socket": with_rules({**FINE, "service": "unix:/run/app.sock"}),
    "TCP": with_rules({**FINE, "service": "tcp://10.0.0.1:5432"}),
    "an IPv6 address": with_rules({**FINE, "service": "http://[fd00::1]:80"}),
    "a status": with_rules({**FINE, "service": "http_status:503"}),
    "access at a rule": with_rules({**FINE, "originRequest": {"access": {"required": True, "teamName": "t"}}}),
    "other options at the top": with_rules(FINE, originRequest={"connectTimeout": "10s"}),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "no rules": ({"tunnel": "t"}, "ingress: it must be a list"),
    "an empty list": ({"ingress": []}, "ingress: it must be a list"),
    "no file at all": (None, "ingress: it must be a list"),
    "no last rule": ({"ingress": [FINE]}, "ingress.0: the last rule must match everything"),
    "a last rule with a path": (
        {"ingress": [FINE, {"path": "/", "service": "http_status:404"}]},
        "ingress.1: the last rule must match everything",
    ),
    "an earlier rule for everything": (with_rules({"service": "http://127.0.0.1:1"}, FINE), "ingress.0: it matches"),
    "a wildcard in the middle": (with_rules({**FINE, "hostname": "a.*.org"}), "ingress.0.hostname: a wildcard may"),
    "a part of a label": (with_rules({**FINE, "hostname": "a*.example.org"}), "ingress.0.hostname: a wildcard may"),
    "a second wildcard": (with_rules({**FINE, "hostname": "*.*.org"}), "ingress.0.hostname: a wildcard may"),
    "a wildcard at the front": (with_rules({**FINE, "hostname": "*.example.org"}), "write exact host names"),
    "a port": (with_rules({**FINE, "hostname": "a.example.org:443"}), "ingress.0.hostname: a host name has no port"),
    "a URL for a name": (with_rules({**FINE, "hostname": "https://a.example.org"}), "ingress.0.hostname"),
    "a path that looks ahead": (with_rules({**FINE, "path": "/(?=a)"}), "ingress.0.path: a regular expression of Go"),
    "a path that looks behind": (with_rules({**FINE, "path": "/(?<!a)b"}), "ingress.0.path: a regular expression"),
    "a path that refers back": (with_rules({**FINE, "path": r"/(a)\1"}), "ingress.0.path: a regular expression"),
    "a path that is possessive": (with_rules({**FINE, "path": "/a*+b"}), "ingress.0.path: a regular expression"),
    "a path that repeats too often": (with_rules({**FINE, "path": "/a{1001}"}), "at most 1,000 times"),
    "a path that is no expression": (with_rules({**FINE, "path": "/("}), "ingress.0.path: it is no regular"),
    "no service": (with_rules({"hostname": "a.example.org"}), "ingress.0.service: a rule needs a service"),
    "a service with a path": (with_rules({**FINE, "service": "http://127.0.0.1:1/api"}), "a URL has no path here"),
    "a service with a slash": (with_rules({**FINE, "service": "http://127.0.0.1:1/"}), "a URL has no path here"),
    "a service with a query": (with_rules({**FINE, "service": "http://127.0.0.1:1?a=b"}), "a URL has no path here"),
    "a service with a password": (with_rules({**FINE, "service": "http://a:b@127.0.0.1:1"}), "leave the user"),
    "an unknown scheme": (with_rules({**FINE, "service": "gopher://127.0.0.1"}), "it must begin with one of"),
    "an address alone": (with_rules({**FINE, "service": "127.0.0.1:80"}), "it must begin with one of"),
    "a status that is none": (with_rules({**FINE, "service": "http_status:99"}), "http_status takes a status"),
    "a socket without a path": (with_rules({**FINE, "service": "unix:"}), "unix: names no socket"),
    "access at the top": (
        with_rules(FINE, originRequest={"access": {"required": True}}),
        "at the top it has no effect",
    ),
    "the same name twice": (with_rules(FINE, {**FINE, "service": "http://127.0.0.1:2"}), "ingress.1: a rule before it"),
    "a path behind none": (with_rules(FINE, {**FINE, "path": "/api"}), "ingress.1: a rule before it"),
    "an unknown field": (with_rules({**FINE, "hostnames": ["b"]}), "ingress.0.hostnames: a rule has no such field"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_a_configuration_that_the_tunnel_takes_has_no_faults(case: str) -> None:
    assert list(faults(ALLOWED[case])) == []


@pytest.mark.parametrize("case", REFUSED)
def test_a_configuration_against_a_rule_is_refused_with_its_place(case: str) -> None:
    config, fault = REFUSED[case]
    assert any(fault in found for found in faults(config)), list(faults(config))


def service(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "port": 3001, "public_endpoint": f"{name}.example.org", **fields}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"originRequest": 5}, "originRequest: it must be an object"),
        ({"ingress": [{"hostname": "a.org", "path": ["x"], "service": "http://a"}, CATCH_ALL]}, "ingress.0.path"),
        ({"ingress": [{"hostname": ["a"], "service": "http://a"}, CATCH_ALL]}, "ingress.0.hostname"),
        ({"ingress": [{"hostname": "a.org", "service": "http://["}, CATCH_ALL]}, "ingress.0.service"),
        ({"ingress": [{"hostname": "a.org", "service": "http://a:70000"}, CATCH_ALL]}, "ingress.0.service"),
    ],
)
def test_a_value_of_an_odd_kind_is_a_fault_with_its_place(changes: dict[str, Any], fault: str) -> None:
    assert [found for found in faults({"ingress": [CATCH_ALL], **changes}) if found.startswith(fault)]


def test_the_rules_are_exact_names_with_longer_paths_first_and_404_at_the_end() -> None:
    services = [
        service("web"),
        service("api", public_endpoint="Web.example.org", public_path="^/api", host="10.0.0.7", protocol="https"),
        service("v2", public_endpoint="web.example.org", public_path="^/api/v2", host="fd00::7"),
        service("inside", public_endpoint=None),
        service("going", deleting=True),
        service("a", port=1),
    ]
    config = tunnel_config(services, {"tunnel": "t", "ingress": ["old"], "loglevel": "info"}, {})
    assert config == {
        "tunnel": "t",
        "loglevel": "info",
        "ingress": [
            {"hostname": "a.example.org", "service": "http://127.0.0.1:1"},
            {"hostname": "web.example.org", "path": "^/api/v2", "service": "http://[fd00::7]:3001"},
            {"hostname": "web.example.org", "path": "^/api", "service": "https://10.0.0.7:3001"},
            {"hostname": "web.example.org", "service": "http://127.0.0.1:3001"},
            {"service": "http_status:404"},
        ],
    }
    assert tunnel_config(list(reversed(services)), config, {}) == config


def test_access_stands_at_each_rule_but_the_last() -> None:
    access = {"required": True, "teamName": "t", "audTag": ["x"]}
    [rule, last] = tunnel_config([service("web")], {}, access)["ingress"]
    assert (rule["originRequest"], last) == ({"access": access}, CATCH_ALL)


def test_two_services_under_one_name_are_refused_with_all_that_is_wrong() -> None:
    both = [service("a"), service("b", public_endpoint="a.example.org"), service("c", public_path="(?=x)")]
    with pytest.raises(CommandError) as refused:
        tunnel_config(both, {}, {})
    assert "ingress.1: a rule before it" in refused.value.message
    assert "ingress.2.path" in refused.value.message
