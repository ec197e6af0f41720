"""What Prometheus would read of an endpoint."""

import httpx
from prometheus_client.parser import text_string_to_metric_families


def scrape(port: int, host: str = "127.0.0.1") -> dict[tuple[str, ...], float]:
    """The samples of an endpoint: (name, label values in their order) to value."""
    response = httpx.get(f"http://{host}:{port}/metrics", trust_env=False, timeout=30)
    response.raise_for_status()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
