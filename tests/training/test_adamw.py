"""Tests of AdamW without torch's compiler."""

import copy

import torch

from training.adamw import AdamW


def test_steps_equal_those_of_torch():
    first = torch.nn.Linear(5, 3)
    second = copy.deepcopy(first)
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-15, "weight_decay": 0.01}
    ours, theirs = AdamW(first.parameters(), **settings), torch.optim.AdamW(second.parameters(), **settings)
    theirs.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.2})
    ours.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.2})
    before = first.weight.detach().clone()
    for _ in range(3):
        for layer, optimizer in ((first, ours), (second, theirs)):
            optimizer.zero_grad(set_to_none=True)
            layer(torch.arange(10.0).view(2, 5)).square().sum().backward()
            optimizer.step()
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, before)
    assert first.weight.requires_grad and first.weight.is_leaf
    state, expected = ours.state_dict(), theirs.state_dict()
    assert (
        state["param_groups"] == expected["param_groups"]
        and state["state"].keys() == expected["state"].keys()
    )
    ours.load_state_dict(expected)
    assert torch.equal(ours.state[first.weight]["exp_avg"], theirs.state[second.weight]["exp_avg"])
