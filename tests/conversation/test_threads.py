"""One thread within, as many as before after it, whatever happens."""

import pytest
import torch

from dialogue_nerfstudio.conversation.threads import one_thread


def test_threads_are_one_within_and_given_back_even_after_an_error():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError), one_thread():
            assert torch.get_num_threads() == 1
            raise ValueError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
