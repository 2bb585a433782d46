"""What a Linux or Android device says about itself: its CPUs and features, clock governor and temperature."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tcomp.errors import TargetError
from tcomp.target.arm_host import CPUINFO_NAMES as ARM_CPUINFO_NAMES
from tcomp.target.arm_parts import core_of
from tcomp.target.host import CPUINFO_NAMES
from tcomp.target.target import Target

_SYSFS = (
    "/sys/firmware/devicetree/base/model",
    "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor",
    "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq",
    "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq",
    "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq",
    "/sys/class/thermal/thermal_zone*/type",
    "/sys/class/thermal/thermal_zone*/temp",
    "/sys/class/thermal/thermal_zone*/trip_point_*_type",
    "/sys/class/thermal/thermal_zone*/trip_point_*_temp",
)
_READ = "[ -r $f ] && echo \"fact $f $(tr -d '\\000' < $f 2> /dev/null)\""
STATE = f"for f in {' '.join(_SYSFS)}; do {_READ}; done; true"
"""A script that prints the files that say what state a device is in; those that it hides are left out."""
IDENTITY = f"echo \"fact machine $(uname -m)\"; sed 's/^/cpuinfo /' /proc/cpuinfo; {STATE}"
"""A script that also prints what the device is."""

_FEATURES = {**ARM_CPUINFO_NAMES, **CPUINFO_NAMES}
"""Linux's names of CPU features -> LLVM's."""
_RUNS = {"aarch64": ("aarch64",), "arm": ("armv7l", "armv8l", "aarch64"), "x86_64": ("x86_64",)}
"""Machines that run programs of a target's machine."""
_CPU_ZONE = re.compile(r"cpu|soc|core|cluster|big|little|tsens|pkg", re.IGNORECASE)
_MOST_CELSIUS = 150.0
"""Sensors that are not connected show more, or less than 0."""
_THROTTLED_MARGIN = 0.98


@dataclass(frozen=True)
class Identity:
    """What a device is: kernel machine, model, and for each CPU its part number and highest clock in kHz."""

    machine: str
    model: str
    features: frozenset[str]
    parts: Mapping[int, int]
    clocks: Mapping[int, int]

    @staticmethod
    def of(text: str) -> Identity:
        """What the output of `IDENTITY` says."""
        facts = _facts(text)
        highest = {cpu: f.get("cpuinfo_max_freq", "") for cpu, f in _by_cpu(facts).items()}
        fields: list[tuple[str, str]] = re.findall(r"^cpuinfo ([^:\t\n]+?)[ \t]*: ?(.*)$", text, re.MULTILINE)
        flags = next((value for name, value in fields if name in ("Features", "flags")), "").split()
        model = next((v for n, v in fields if n in ("Hardware", "model name") and v.strip()), "")
        parts: dict[int, int] = {}
        cpu = 0
        for name, value in fields:
            if name == "processor":
                cpu = int(value)
            elif name == "CPU part":
                parts[cpu] = int(value, 16)
        return Identity(
            facts.get("machine", ""),
            facts.get("/sys/firmware/devicetree/base/model", "").strip() or model.strip(),
            frozenset(_FEATURES[f] for f in flags if f in _FEATURES),
            parts,
            {cpu: int(clock) for cpu, clock in highest.items() if clock.isdigit()},
        )

    def require(self, targets: Sequence[Target], name: str) -> None:
        """Raise TargetError when the device cannot run code for one of `targets`."""
        for target in targets:
            if self.machine not in _RUNS[target.machine]:
                raise TargetError(
                    f"{name} calls itself {self.machine or 'nothing'}, and target `{target.name}` is for "
                    f"{target.machine}; name a target that it is"
                )
            missing = sorted(target.features - self.features) if self.features else []
            if missing:
                raise TargetError(
                    f"{name} lacks {', '.join(missing)} of target `{target.name}`; name a target that it is"
                )

    def cpus(self, target: Target) -> tuple[int, ...]:
        """The CPUs to measure on: those that the target's core stands for, else the fastest; none where all
        are alike."""
        every = set(self.parts) | set(self.clocks)
        found = {cpu for cpu, part in self.parts.items() if core_of(part) == target.llvm["mcpu"]}
        if not found and self.clocks:
            found = {cpu for cpu, clock in self.clocks.items() if clock == max(self.clocks.values())}
        return () if found == every else tuple(sorted(found))


@dataclass(frozen=True)
class State:
    """What a device is like at one moment. Clocks in kHz, temperatures in degrees Celsius."""

    governors: frozenset[str]
    clock: int | None
    limit: int | None
    highest: int | None
    temperature: float | None
    throttles_at: float | None

    @staticmethod
    def of(text: str, cpus: Sequence[int] = ()) -> State:
        """What the output of `STATE` says about `cpus`, all if there are none."""
        facts = _facts(text)
        mine = [f for cpu, f in _by_cpu(facts).items() if not cpus or cpu in cpus]

        def most(name: str) -> int | None:
            return max((int(f[name]) for f in mine if f.get(name, "").isdigit()), default=None)

        temperature, throttles_at = _hottest(facts)
        return State(
            frozenset(f["scaling_governor"] for f in mine if "scaling_governor" in f),
            most("scaling_cur_freq"),
            most("scaling_max_freq"),
            most("cpuinfo_max_freq"),
            temperature,
            throttles_at,
        )

    @property
    def is_throttled(self) -> bool:
        """Whether heat holds the clock down."""
        bound = float("inf") if self.throttles_at is None else self.throttles_at
        if self.temperature is not None and self.temperature >= bound:
            return True
        return bool(self.limit and self.highest and self.limit < _THROTTLED_MARGIN * self.highest)


def conditions(before: State, after: State, cpus: Sequence[int]) -> dict[str, str]:
    """What a record says of the device around a measurement; `warning` is there when times are doubtful."""
    found: dict[str, str] = {}
    governors = before.governors | after.governors
    if governors:
        found["governor"] = ", ".join(sorted(governors))
    if after.clock is not None:
        found["clock"] = f"{after.clock / 1e3:.0f} MHz"
    temperatures = [s.temperature for s in (before, after) if s.temperature is not None]
    if temperatures:
        found["temperature"] = f"{max(temperatures):.1f} C"
    if cpus:
        found["cpus"] = ",".join(map(str, cpus))
    if before.is_throttled or after.is_throttled:
        found["warning"] = "the device is hot or its clock limited, so it runs slower than it can; cool it"
    elif governors - {"performance"}:
        found["warning"] = "the clock's governor is not `performance`, so that times vary; set it as root"
    return found


def _facts(text: str) -> dict[str, str]:
    return dict(re.findall(r"^fact (\S+) (.*)$", text, re.MULTILINE))


def _by_cpu(facts: Mapping[str, str]) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for path, value in facts.items():
        match = re.fullmatch(r"/sys/devices/system/cpu/cpu(\d+)/cpufreq/(\w+)", path)
        if match is not None:
            found.setdefault(int(match[1]), {})[match[2]] = value.strip()
    return found


def _hottest(facts: Mapping[str, str]) -> tuple[float | None, float | None]:
    """The temperature of the hottest sensor of the CPUs, and the one above which it slows them down."""
    zones: dict[str, dict[str, str]] = {}
    for path, value in facts.items():
        match = re.fullmatch(r"/sys/class/thermal/(thermal_zone\d+)/(\w+)", path)
        if match is not None:
            zones.setdefault(match[1], {})[match[2]] = value.strip()
    hottest: tuple[float | None, float | None] = (None, None)
    for zone in zones.values():
        celsius = _celsius(zone.get("temp", ""))
        if celsius is None or not _CPU_ZONE.search(zone.get("type", "")):
            continue
        if hottest[0] is None or celsius > hottest[0]:
            trips = [
                _celsius(zone.get(name.replace("_type", "_temp"), ""))
                for name, kind in zone.items()
                if name.startswith("trip_point") and kind == "passive"
            ]
            hottest = celsius, min((t for t in trips if t is not None), default=None)
    return hottest


def _celsius(text: str) -> float | None:
    """Degrees from Linux's thousandths; None for what no sensor measures."""
    if not re.fullmatch(r"-?\d+", text):
        return None
    value = int(text) / 1000.0
    return value if 0.0 < value < _MOST_CELSIUS else None
