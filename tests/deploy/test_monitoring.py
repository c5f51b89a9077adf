"""Dashboard, alerts and the autoscaler's metric, held against what a real Triton gives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serving.client import PipelineClient
from serving.phantom import ct_slice, png_bytes
from serving.pipeline import ENSEMBLE_NAME, MODEL_NAMES
from serving.repository import DEFAULT_REPOSITORY
from serving.tritonserver import ServerConfig, TritonServer

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
OF_PROMETHEUS = {"up"}
"""What a scrape adds by itself."""

LABELS_OF_PROMETHEUS = {"job", "instance", "namespace", "pod"}


def dashboard() -> dict[str, Any]:
    return dict(json.loads((DEPLOY / "grafana" / "lungstreams.json").read_text(encoding="utf-8")))


def yaml_of(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8")))


def dashboard_queries() -> list[str]:
    given = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    # As Grafana fills them in.
    return [query.replace("$__rate_interval", "1m").replace("$instance", ".*") for query in given]


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml_of("prometheus/lungstreams.rules.yml")["groups"]
    return [rule for group in groups for rule in group["rules"]]


def adapter_query() -> str:
    (rule,) = yaml_of("kubernetes/prometheus-adapter.yaml")["rules"]["custom"]
    query = str(rule["metricsQuery"])
    return query.replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="lungstreams"')


QUERIES = [*dashboard_queries(), *(rule["expr"] for rule in alert_rules()), adapter_query()]


def selectors(node: Any) -> Iterator[Any]:
    """Every selection of a metric within a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "args", "vector_selector", "param"):
        child = getattr(node, name, None)
        for each in child if isinstance(child, list) else [child]:
            if each is not None:
                yield from selectors(each)


@pytest.fixture(scope="module")
def series(toy_triton: TritonServer) -> dict[str, list[dict[str, str]]]:
    """Sample name -> labels of each of its series, as a server gives them that has read a scan."""
    with PipelineClient(toy_triton.grpc_url) as client:
        client.predict(png_bytes(ct_slice(0).pixels), "ct")
    with urlopen(f"http://{toy_triton.metrics_url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            # By the format of OpenMetrics this parser gives counters a suffix, which Triton's do not have.
            name = sample.name.removesuffix("_total") if family.type == "counter" else sample.name
            found.setdefault(name, []).append(sample.labels)
    return found


@pytest.mark.triton
@pytest.mark.parametrize("query", QUERIES)
def test_every_query_selects_something_that_is_there(series: dict[str, list[dict[str, str]]], query: str) -> None:
    chosen = list(selectors(promql_parser.parse(query)))
    assert chosen
    for selector in chosen:
        if selector.name in OF_PROMETHEUS:
            continue
        assert selector.name in series
        asked = [m for m in selector.matchers.matchers if m.name not in LABELS_OF_PROMETHEUS]
        matching = [s for s in series[selector.name] if all(_matches(m, s) for m in asked)]
        assert matching, f"{selector.name} has no series for {query}"


def _matches(matcher: Any, labels: dict[str, str]) -> bool:
    value = labels.get(matcher.name, "")
    if matcher.op == promql_parser.MatchOp.Equal:
        return value == matcher.value
    assert matcher.op == promql_parser.MatchOp.NotEqual
    return value != matcher.value


def test_the_check_would_see_a_metric_that_is_not_there() -> None:
    (selector,) = selectors(promql_parser.parse("sum(rate(nv_no_such_metric[1m])) / 2"))
    assert selector.name == "nv_no_such_metric"


def test_the_panels_have_titles_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    for key in ("id", "title"):
        assert len({panel[key] for panel in panels}) == len(panels)
    taken = set()
    for position in (panel["gridPos"] for panel in panels):
        assert position["x"] + position["w"] <= 24
        cells = {
            (x, y)
            for x in range(position["x"], position["x"] + position["w"])
            for y in range(position["y"], position["y"] + position["h"])
        }
        assert not taken & cells
        taken |= cells


def test_models_are_called_by_their_names() -> None:
    for query in QUERIES:
        assert set(re.findall(r'model!?="([^"]+)"', query)) <= set(MODEL_NAMES), query
    assert any(ENSEMBLE_NAME in query for query in QUERIES)


def test_alerts_say_how_long_how_bad_and_what() -> None:
    for rule in alert_rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert "$labels.instance" in rule["annotations"]["summary"]


def test_the_alert_of_the_queue_knows_how_much_it_holds() -> None:
    config = (DEFAULT_REPOSITORY / "preprocess" / "config.pbtxt").read_text(encoding="utf-8")
    size = re.search(r"max_queue_size: (\d+)", config)
    assert size is not None
    (alert,) = (rule["expr"] for rule in alert_rules() if rule["alert"] == "LungstreamsQueueFills")
    assert float(alert.rpartition(">")[2]) == int(size[1]) / 2


def test_prometheus_asks_where_the_embedded_server_answers() -> None:
    config = yaml_of("prometheus/prometheus.yml")
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{ServerConfig().metrics_port}"]}]
    for name in config["rule_files"]:
        assert (DEPLOY / "prometheus" / name).is_file()
    assert all(f'job="{job["job_name"]}"' in query for query in QUERIES[:-1])


def test_the_relabelling_that_the_document_gives_names_our_pods_as_the_queries_ask() -> None:
    document = (DEPLOY.parent / "docs" / "deploy.md").read_text(encoding="utf-8")
    (rule,) = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", document, re.DOTALL)[0])
    labels = yaml_of("kubernetes/deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    # As Prometheus writes a pod's labels.
    known = {
        f"__meta_kubernetes_pod_label_{re.sub(r'[^a-zA-Z0-9_]', '_', name)}": value for name, value in labels.items()
    }
    (label,) = rule["source_labels"]
    assert re.fullmatch(rule["regex"], known[label])
    (job,) = yaml_of("prometheus/prometheus.yml")["scrape_configs"]
    assert (rule["target_label"], rule["replacement"]) == ("job", job["job_name"])
