"""What torch's allocator gives while something is done on the CPU."""

import json

from torch.profiler import ProfilerActivity, profile


def allocated(work, trace) -> tuple[int, int]:
    """(bytes before, most bytes during) of torch's CPU allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    watched.export_chrome_trace(str(trace))
    told = [e["args"] for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    totals = [args["Total Allocated"] for args in told if args["Device Type"] == 0]
    return totals[0] - told[0]["Bytes"], max(totals)
