"""The allocator's counters of every device: each moment has its own peaks, and the program sees its own."""

import torch

_MERGED = (
    "allocated_bytes",
    "reserved_bytes",
    "active_bytes",
    "requested_bytes",
    "allocation",
    "segment",
    "active",
)


class Counters:
    """Peaks are taken and begun anew at each moment; what the program asks for is the peak since its own
    reset.
    """

    def __init__(self):
        self._seen = {}  # device -> {(statistic, pool): peak since the program's reset}

    def take_over(self):
        """From now on the program's questions about peaks are answered from here."""
        self._stats, self._reset = torch._C._cuda_memoryStats, torch._C._cuda_resetPeakMemoryStats
        torch._C._cuda_memoryStats = self._for_program
        torch._C._cuda_resetPeakMemoryStats = self._reset_by_program

    def _for_program(self, device):
        stats = self._stats(device)
        for (name, pool), peak in self._seen.get(device, {}).items():
            entry = stats[name][pool]
            entry["peak"] = max(entry["peak"], peak)
        return stats

    def _reset_by_program(self, device):
        """The moment's own peak must survive: it is kept aside."""
        self._fold(device, self._moment)
        self._seen.pop(device, None)
        self._reset(device)

    _moment = {}  # device -> peaks of the open moment that a reset of the program cut off

    def _fold(self, device, into):
        stats, kept = self._stats(device), into.setdefault(device, {})
        for name in _MERGED:
            for pool, entry in stats.get(name, {}).items():
                kept[name, pool] = max(kept.get((name, pool), 0), entry["peak"])

    def position(self):
        """[allocations, frees] so far, of each device."""
        found = []
        for device in range(torch.cuda.device_count()):
            entry = self._stats(device).get("allocation", {}).get("all", {})
            found.append([entry.get("allocated", 0), entry.get("freed", 0)])
        return found

    def take(self):
        """A list with one dictionary per device; the peaks then begin anew."""
        return [self._take(device) for device in range(torch.cuda.device_count())]

    def _take(self, device):
        self._fold(device, self._moment)
        self._fold(device, self._seen)
        peaks, stats = self._moment.pop(device), self._stats(device)
        self._reset(device)

        def now(name):
            return stats.get(name, {}).get("all", {}).get("current", 0)

        return {
            "allocated": now("allocated_bytes"),
            "allocated_peak": peaks.get(("allocated_bytes", "all"), 0),
            "requested_peak": peaks.get(("requested_bytes", "all"), 0),
            "active_peak": peaks.get(("active_bytes", "all"), 0),
            "reserved": now("reserved_bytes"),
            "reserved_peak": peaks.get(("reserved_bytes", "all"), 0),
            "retries": stats.get("num_alloc_retries", 0),
        }
