"""Test how trials are distributed over the ranks of a launcher."""

import pytest

from configs.errors import ConfigError
from training.launch import LauncherRank, read_launcher_rank
from training.sweep.run import any_rank_failed


def test_single_process_without_a_launcher():
    rank = read_launcher_rank({"HOME": "/h"})
    assert rank == LauncherRank(0, 1, 0, 1)
    assert rank.select("abc") == list("abc")
    assert rank.gpus(["0", "1"]) == ["0", "1"]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("trials", [0, 1, 6, 10])
def test_every_trial_has_one_rank_and_shares_differ_by_one(world, trials):
    shares = [LauncherRank(number, world).select(range(trials)) for number in range(world)]
    assert sorted(trial for share in shares for trial in share) == list(range(trials))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(trial % world == number for number, share in enumerate(shares) for trial in share)


def test_rank_uses_the_gpu_of_its_local_rank():
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    rank = read_launcher_rank(variables)
    assert rank == LauncherRank(5, 8, 1, 4)
    assert rank.gpus(["4", "7"]) == ["7"]
    assert LauncherRank(3, 4, 3, 4).gpus(["4", "7"]) == ["7"]
    assert rank.gpus([]) == []
    assert read_launcher_rank({"RANK": "1", "WORLD_SIZE": "2"}) == LauncherRank(1, 2, 0, 1)


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "a", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"},
        {"RANK": "0", "WORLD_SIZE": "0"},
    ],
)
def test_variables_that_contradict_are_rejected_by_name(variables):
    with pytest.raises(ConfigError, match="RANK=.*torchrun"):
        read_launcher_rank(variables)


@pytest.mark.parametrize("failed", [True, False])
def test_a_single_rank_returns_its_own_result(failed):
    assert any_rank_failed(LauncherRank(), failed) is failed


def _rank_result(number, port, failed, results):
    import os

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2"}
    results.put((number, any_rank_failed(LauncherRank(number, 2), failed)))


def test_failure_of_one_rank_fails_all():
    import socket

    import torch.multiprocessing as multiprocessing

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_rank_result, args=(k, port, k == 1, results)) for k in range(2)]
    for rank in ranks:
        rank.start()
    assert sorted(results.get(timeout=120) for _ in ranks) == [(0, True), (1, True)]
    for rank in ranks:
        rank.join()
