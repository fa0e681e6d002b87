"""What a driver holds of its input."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import sys, gpuserve
gpuserve.BatchMapper(
    target=lambda batch: [text[:8] for text in batch],
    source=gpuserve.Jsonl(sys.argv[1], id_field="id", input_field="text"),
    output=sys.argv[2],
    batching=gpuserve.MapBatching(window=1024, max_items=256),
).run()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) / 1024)
"""


def peak_mib(folder, count):
    source = folder / f"{count}.jsonl"
    with source.open("w") as file:
        file.writelines(json.dumps({"id": f"k{number}", "text": f"{number} " * 20}) + "\n" for number in range(count))
    command = [sys.executable, "-c", PROGRAM, source, folder / f"out-{count}"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.wide
def test_a_driver_needs_no_more_memory_for_more_items_than_the_cache_of_its_ids(tmp_path):
    few, many = peak_mib(tmp_path, 5_000), peak_mib(tmp_path, 100_000)
    print(f"{few:.1f} MiB for 5,000 items, {many:.1f} for 100,000")

    # 8 MiB of ids are cached, see KnownIds; the 95,000 items more, held, would be 40 MiB
    assert many - few < 10
