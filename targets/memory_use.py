"""What a model takes of the memory of each device, whichever runtime it is."""

from dataclasses import dataclass

GIB = 1 << 30
_MIB = 1 << 20
_KIB = 1 << 10


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceUse:
    """One device's share, in bytes."""

    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    runtime_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes + self.runtime_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryUse:
    """All devices together."""

    devices: tuple[DeviceUse, ...]
    """In the order in which the runtime fills them; at least one."""

    @property
    def weights_bytes(self) -> int:
        """Over all devices."""
        return sum(device.weights_bytes for device in self.devices)

    @property
    def kv_cache_bytes(self) -> int:
        """Over all devices."""
        return sum(device.kv_cache_bytes for device in self.devices)

    @property
    def compute_bytes(self) -> int:
        """Over all devices."""
        return sum(device.compute_bytes for device in self.devices)

    @property
    def runtime_bytes(self) -> int:
        """Over all devices."""
        return sum(device.runtime_bytes for device in self.devices)

    @property
    def total_bytes(self) -> int:
        """Over all devices."""
        return sum(device.total_bytes for device in self.devices)

    @property
    def fullest_bytes(self) -> int:
        """Of the device that needs most: it decides whether the model fits."""
        return max(device.total_bytes for device in self.devices)


def size_text(n_bytes: float) -> str:
    """Bytes as people read them: GiB, MiB below a tenth of one, KiB below a tenth of one."""
    if n_bytes >= GIB / 10:
        return f"{n_bytes / GIB:.2f} GiB"
    return f"{n_bytes / _MIB:.1f} MiB" if n_bytes >= _MIB / 10 else f"{n_bytes / _KIB:.1f} KiB"
