"""Small networks computed on one of torch's threads."""

from contextlib import contextmanager
from typing import Iterator

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch to one thread: sharing out layers this small takes longer than computing them, motion by a sixth,
    voices three times and speech thirty times as long where the cores are busy with pictures."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
