"""Metrics as Prometheus reads them: what a process really answers, parsed by Prometheus' own rules."""

from collections.abc import Iterable
from dataclasses import dataclass

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

PREFIXES = ("agent_", "process_", "python_")


@dataclass(frozen=True)
class Scraped:
    families: tuple[Metric, ...]

    def value(self, name: str, **labels: str) -> float:
        """Of the one sample that has these labels; 0 where there is none, as of a counter that never counted."""
        found = [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert len(found) <= 1, f"{len(found)} samples {name} with {labels}"
        return found[0] if found else 0.0

    def labels(self, name: str) -> list[dict[str, str]]:
        """Of all samples of this name, with all that they carry."""
        return [sample.labels for family in self.families for sample in family.samples if sample.name == name]

    @property
    def names(self) -> set[str]:
        return {sample.name for family in self.families for sample in family.samples}


def parsed(text: str) -> Scraped:
    return Scraped(tuple(text_string_to_metric_families(text)))


async def scrape(url: str) -> Scraped:
    async with httpx.AsyncClient(timeout=30.0) as http:
        answer = await http.get(f"{url}/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return parsed(answer.text)


def broken_conventions(families: Iterable[Metric]) -> list[str]:
    """What promtool would complain about, and names that are not the platform's."""
    found = []
    for family in families:
        if not family.name.startswith(PREFIXES):
            found.append(f"{family.name}: begins with none of {PREFIXES}")
        if not family.documentation:
            found.append(f"{family.name}: says not what it is")
        if not family.name.startswith("agent_"):
            continue
        for sample in family.samples:
            if (family.type == "counter") != sample.name.endswith("_total"):
                found.append(f"{sample.name}: counters, and only they, end with _total")
        if family.type == "histogram" and not family.name.endswith("_seconds"):
            found.append(f"{family.name}: without its unit")
        if any(unit in family.name for unit in ("_ms", "_milliseconds", "_minutes", "_kb", "_mb")):
            found.append(f"{family.name}: not in a base unit")
    return found
