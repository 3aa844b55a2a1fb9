"""The search for a rate of tokens: its rule, and the whole of it on a machine that is known."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentctl.commands.calibrate import key_of, search, settled_rate, write_settings
from agentctl.exit_codes import CommandError
from agentctl.sizing.calibration import Measurement, Verdict, next_rate, starting_range, verdict
from agentctl.sizing.calibration_load import Load, Window
from agentctl.sizing.cpu_use import CgroupMeter, CpuMeter, ProcessMeter
from agentctl.terminal.output import Output
from tests.unit.conftest import Agentctl


@pytest.mark.parametrize(
    ("cpu", "change"), [(86, 0.8), (100, 0.8), (49, 1.25), (0, 1.25), (85, 0.9), (60, 1.1), (75, 1)]
)
def test_the_rate_follows_the_cpu(cpu: float, change: float) -> None:
    assert next_rate(10, cpu) == pytest.approx(10 * change)


def test_one_good_measurement_is_not_enough() -> None:
    good, bad = Measurement(10, 10, 75), Measurement(10, 10, 81)
    assert verdict([good], 9) is Verdict.GO_ON
    assert verdict([good, bad], 9) is Verdict.GO_ON
    assert verdict([bad, good, good], 9) is Verdict.HOLDS
    assert verdict([bad] * 9, 9) is Verdict.GAVE_UP


def test_a_load_that_cannot_be_had_ends_the_search() -> None:
    slow = Measurement(20, 10, 40)
    assert verdict([slow, slow], 9) is Verdict.NOT_REACHED
    assert settled_rate([slow, slow]) == 10


@pytest.mark.parametrize(
    ("cores", "usual"), [(2, (5, 10)), (4, (5, 10)), (8, (10, 20)), (16, (20, 50)), (64, (20, 50))]
)
def test_the_usual_rates_go_by_the_cores(cores: int, usual: tuple[int, int]) -> None:
    assert starting_range(cores) == usual


class Machine(CpuMeter, Load):
    """Each token takes `token_seconds` of CPU; it makes `most` tokens/s at most. Its CPU time is computed."""

    what = "a machine that is known"
    cores = 4.0

    def __init__(self, token_seconds: float, most: float = 1e9) -> None:
        self._token_seconds = token_seconds
        self._most = most
        self._per_second = 0.0
        self._looks = 0

    def used_seconds(self) -> float:
        self._looks += 1
        return 0.0 if self._looks % 2 else self._per_second * self.seconds

    @asynccontextmanager
    async def running(self, rate: float, agents: int, seconds: float) -> AsyncIterator[Window]:
        reached = min(rate, self._most / agents)
        self._per_second = min(reached * agents * self._token_seconds, self.cores)
        self.seconds = seconds
        yield Window(seconds, lambda: reached)


@pytest.mark.parametrize(
    ("token_ms", "most", "ends"),
    [(20, 1e9, Verdict.HOLDS), (60, 1e9, Verdict.HOLDS), (500, 1e9, Verdict.HOLDS), (1, 40.0, Verdict.NOT_REACHED)],
)
async def test_the_search_ends_where_the_machine_is_used_well(token_ms: float, most: float, ends: Verdict) -> None:
    machine = Machine(token_ms / 1000, most)
    measured = await search(machine, machine, Output(json=True), agents=5, start=10, seconds=0.02, rounds=40)
    assert verdict(measured, 40) is ends


@pytest.mark.parametrize("where", ["file", "environment"])
def test_a_key_is_found_where_the_workers_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPU_KEY", raising=False)
    with pytest.raises(CommandError, match=r"GPU_KEY is neither in the environment nor in \.env"):
        key_of("GPU_KEY")
    if where == "file":
        (tmp_path / ".env").write_text("GPU_KEY=sk-g\n")
    else:
        monkeypatch.setenv("GPU_KEY", "sk-g")
    assert key_of("GPU_KEY") == "sk-g"
    assert key_of(None) == ""


def test_a_setting_is_replaced_and_the_other_lines_stay(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("REDIS_URL=redis://x\nAGENT_TOKENS_PER_SECOND=10\n# a note\n")
    write_settings(file, {"AGENT_TOKENS_PER_SECOND": "8.00"})
    assert file.read_text() == "REDIS_URL=redis://x\n# a note\nAGENT_TOKENS_PER_SECOND=8.00\n"
    assert [path.name for path in tmp_path.iterdir()] == [".env"]


def test_a_cgroups_limit_is_what_its_cpu_is_measured_against(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    meter = CgroupMeter(tmp_path)
    assert (meter.used_seconds(), meter.cores) == (2.5, 0.5)


def test_what_is_no_cgroup_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="tells no CPU time"):
        CgroupMeter(tmp_path)


def test_a_process_that_is_not_there_is_refused() -> None:
    with pytest.raises(CommandError, match="no process 4194999"):
        ProcessMeter(4_194_999)


@pytest.mark.parametrize("wrong", [["--server", "http://127.0.0.1:1/v1"], ["--pid", "1", "--cgroup", "/x"]])
def test_options_that_contradict_are_refused(agentctl: Agentctl, wrong: list[str]) -> None:
    assert agentctl("calibrate", *wrong)[0] == 2
