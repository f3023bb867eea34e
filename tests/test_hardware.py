import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from boxtwin.hardware import batch_threads, peak_memory, torch_device

# Twelve times the same 48 MB, used and freed; how often the system had to give a page.
PROGRAM = """
import resource, sys
import numpy as np
from boxtwin.memory import keep_freed_blocks
if sys.argv[1] == "keep":
    assert keep_freed_blocks()
np.ones(48 << 20, dtype=np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(12):
    np.ones(48 << 20, dtype=np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again() -> None:
    # Without huge pages, which numpy asks for and which would hide most of the page faults.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "NUMPY_MADVISE_HUGEPAGE": "0"}
    given = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, how], env=environment, capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("keep", "give back")
    }
    assert given["keep"] < 1000 < 12 * 12288 // 2 < given["give back"]


@pytest.mark.parametrize(("cores", "processes", "threads"), [(64, 1, 8), (16, 4, 4), (2, 3, 1)])
def test_threads_of_batches(monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, threads: int) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    assert batch_threads("cpu", processes) == 1
    monkeypatch.setattr("boxtwin.hardware.on_gpu", lambda accelerator: accelerator == "cuda")
    assert batch_threads("cuda", processes) == threads


@pytest.mark.parametrize(("has_cuda", "device"), [(True, "cuda"), (False, "mps")])
def test_the_device_of_each_accelerator(monkeypatch: pytest.MonkeyPatch, has_cuda: bool, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert [torch_device(name) for name in ("cpu", "cuda", "mps", "gpu")] == ["cpu", "cuda", "mps", device]


def test_the_peak_of_the_process_grows_by_what_it_takes() -> None:
    of, before = peak_memory()
    if of == "gpu":
        pytest.skip("a GPU is in use")
    taken = np.ones(int(1.5 * before) // 8)
    of, after = peak_memory()
    assert of == "process"
    assert after >= taken.nbytes > before
    del taken
    assert peak_memory() == ("process", after)
