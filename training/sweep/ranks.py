"""Several processes of one launcher (torchrun) share the trials of a sweep; each has only its own number."""

import os
from datetime import timedelta

from training.launch import LauncherRank

# Longer than the longest sweep; the store's clock counts milliseconds in 32 bits.
PATIENCE = timedelta(days=14)


def any_failed(rank: LauncherRank, failed: bool) -> bool:
    """Whether a trial of any rank failed; waits for all.

    A launcher ends all ranks as soon as one leaves with an error, which must not hit those that still work.
    """
    if rank.world_size == 1 or "MASTER_ADDR" not in os.environ:
        return failed
    import torch
    import torch.distributed as distributed

    distributed.init_process_group("gloo", timeout=PATIENCE)
    number = torch.tensor(int(failed))
    distributed.all_reduce(number)
    distributed.destroy_process_group()
    return bool(number)
