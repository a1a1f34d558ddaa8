from __future__ import annotations

from pathlib import Path

import pytest

from edgevit.measure.throttling import firmware_signs, throttle_count, throttling
from tests.measure.test_environment import fake

CPU0 = "sys/devices/system/cpu/cpu0"
COOLING = "sys/class/thermal/cooling_device0"


@pytest.mark.parametrize(
    ("told", "signs"),
    [
        ("throttled=0x0", ()),
        ("throttled=0x50005\n", ("firmware: under-voltage", "firmware: throttled")),
        ("50000\n", ()),  # since boot only
        ("8", ("firmware: soft temperature limit",)),
        ("VCHI initialization failed", None),
        ("", None),
    ],
)
def test_the_firmware_of_a_raspberry_pi(told: str, signs: tuple[str, ...] | None) -> None:
    assert firmware_signs(told) == signs


def test_a_system_that_shows_nothing(tmp_path: Path) -> None:
    assert throttling(tmp_path) is None and throttle_count(tmp_path) is None


def test_what_a_board_shows(tmp_path: Path) -> None:
    quiet = fake(
        tmp_path / "quiet",
        {
            "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
            f"{COOLING}/type": "thermal-cpufreq-0\n",
            f"{COOLING}/cur_state": "0\n",
            f"{CPU0}/cpufreq/scaling_max_freq": "1800000\n",
            f"{CPU0}/cpufreq/cpuinfo_max_freq": "1800000\n",
        },
    )
    assert throttling(quiet) == ()
    hot = fake(
        tmp_path / "hot",
        {
            "sys/devices/platform/soc/soc:firmware/get_throttled": "6\n",
            f"{COOLING}/type": "thermal-cpufreq-0\n",
            f"{COOLING}/cur_state": "3\n",
            "sys/class/thermal/cooling_device1/type": "pwm-fan\n",
            "sys/class/thermal/cooling_device1/cur_state": "4\n",
            f"{CPU0}/cpufreq/scaling_max_freq": "1500000\n",
            f"{CPU0}/cpufreq/cpuinfo_max_freq": "1800000\n",
        },
    )
    assert throttling(hot) == (
        "firmware: clock capped",
        "firmware: throttled",
        "thermal-cpufreq-0 at state 3",
        "clock limited to 1500 of 1800 MHz",
    )


def test_cores_count_how_often_they_were_throttled(tmp_path: Path) -> None:
    name = "thermal_throttle/core_throttle_count"
    assert throttle_count(fake(tmp_path, {f"{CPU0}/{name}": "4\n", f"sys/devices/system/cpu/cpu1/{name}": "3\n"})) == 7
