"""CPU and memory as Kubernetes writes them."""

import pytest

from backplane.domain.quantities import cpu_millis, memory_bytes


@pytest.mark.parametrize(
    ("written", "millis"), [("1", 1000), ("500m", 500), ("0.5", 500), ("1.25", 1250), ("0.001", 1), ("64", 64_000)]
)
def test_processors(written: str, millis: int) -> None:
    assert cpu_millis(written) == millis


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1024", 1024),
        ("1Ki", 1024),
        ("1k", 1000),
        ("1.5Gi", 3 * 512 * 1024**2),
        ("0.1Mi", 104_858),
        ("1Ti", 1024**4),
        ("2G", 2 * 10**9),
    ],
)
def test_memory(written: str, size: int) -> None:
    assert memory_bytes(written) == size


@pytest.mark.parametrize("written", ["", "m", "-1", "1.2345", "1e3", "1 ", "1Gi", "٣"])
def test_what_are_no_processors(written: str) -> None:
    with pytest.raises(ValueError, match="processors"):
        cpu_millis(written)


@pytest.mark.parametrize("written", ["", "Gi", "-1Gi", "1e3", "1 Gi", "1GB", "1m", "1Pi", "٣Gi"])
def test_what_is_no_memory(written: str) -> None:
    with pytest.raises(ValueError, match="memory"):
        memory_bytes(written)
