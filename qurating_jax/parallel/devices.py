"""What the makers' data sheets say of accelerators: the one table behind MFU and plans."""

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class DeviceModel:
    """One kind of accelerator.

    Attributes:
        name: what `qurating plan --device` calls it.
        kinds: parts of JAX's `device_kind` that tell it.
        peak_flops: dense bfloat16, FLOP/s.
        memory_bytes: of one device as JAX counts devices (a whole chip).
        usable: share of the memory that a program gets: on GPUs XLA_PYTHON_CLIENT_MEM_FRACTION as our launch scripts
            set it, on TPUs what the compiler allows.
        platform: JAX's name of the platform.
        slices: the generation in names of TPU topologies (`v5e` in `v5e:16x16`); empty for others.
        dimensions: of the TPU's interconnect.
    """

    name: str
    kinds: tuple[str, ...]
    peak_flops: float
    memory_bytes: int
    usable: float
    platform: str
    slices: str = ""
    dimensions: int = 0

    @property
    def usable_bytes(self) -> int:
        """What a program gets of the memory."""
        return int(self.memory_bytes * self.usable)


def _gpu(name: str, peak_flops: float, gigabytes: int, *kinds: str) -> DeviceModel:
    return DeviceModel(name, (name, *kinds), peak_flops, gigabytes * 10**9, 0.92, "gpu")


def _tpu(slices: str, peak_flops: float, gibibytes: int, dimensions: int, *kinds: str) -> DeviceModel:
    name = f"TPU {slices}"
    usable = 1 - 0.25 / gibibytes  # the compiler's own words for a v5e are 15.75 of 16 GiB
    return DeviceModel(name, (name, *kinds), peak_flops, gibibytes * GIB, usable, "tpu", slices, dimensions)


DEVICES = (
    _gpu("A100 40GB", 312e12, 40, "A100-SXM4-40GB", "A100-PCIE-40GB"),
    _gpu("A100", 312e12, 80),
    _gpu("H100 PCIe", 756e12, 80),
    _gpu("H100", 989e12, 80),
    _gpu("GH200", 989e12, 96),
    _gpu("H200", 989e12, 141),
    _tpu("v4", 275e12, 32, 3),
    _tpu("v5e", 197e12, 16, 2, "TPU v5 lite"),
    _tpu("v5p", 459e12, 95, 3, "TPU v5"),
    _tpu("v6e", 918e12, 32, 2, "TPU v6 lite"),
)


def find_device(kind: str) -> DeviceModel | None:
    """The device that JAX (or a user) names so, by the longest name that it contains; None where none is known."""
    matching = [(len(part), device) for device in DEVICES for part in device.kinds if part.lower() in kind.lower()]
    return max(matching, key=lambda match: match[0])[1] if matching else None
