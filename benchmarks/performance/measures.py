"""Time and memory, on a CPU or a GPU."""
import gc
import re
import statistics
import time
from pathlib import Path

import torch


def wait_for(device):
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()


def seconds(context, batch, count, device):
    """Mean seconds on the wall and of the CPU of calls of what a context gives, as many as given."""
    with context() as call:
        wait_for(device)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            call(batch)
        wait_for(device)
        return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def set_precision(precision, device):
    """Of products in float32; bfloat16 is autocast's."""
    if torch.device(device).type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = precision == 'tf32'
        torch.backends.cudnn.allow_tf32 = precision == 'tf32'


def free_memory(device):
    gc.collect()
    if torch.device(device).type == 'cuda':
        torch.cuda.empty_cache()


def _status(key):
    return int(re.search(rf'{key}:\s+(\d+)', Path('/proc/self/status').read_text(encoding='utf-8')).group(1)) / 1024


def peak_above(call, device):
    """MiB that are in use at most while a call runs, above those in use before.

    On a GPU, of tensors. On a CPU, of the process: call it in a process of its own, with large blocks of memory given
    back at once (MALLOC_MMAP_THRESHOLD_), or the peak is of what was there before.
    """
    wait_for(device)
    if torch.device(device).type == 'cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        wait_for(device)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')  # VmHWM starts anew
    before = _status('VmRSS')
    call()
    return _status('VmHWM') - before


def ratios(times, unit):
    """Round by round, of two lists of seconds."""
    return [a / b for a, b in zip(times, unit)]


def spread(values, digits=2):
    """Median (smallest-largest)."""
    return f'{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})'
