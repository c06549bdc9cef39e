"""AdamW without torch's compiler."""

import inspect

import torch


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` whose methods cannot be compiled with `torch.compile`.

    The methods of torch's class import the compiler at their first call, which takes more than a second. The
    results are the same.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
