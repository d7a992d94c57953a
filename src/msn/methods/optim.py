"""Optimizers, their hyperparameters at a step, and the guard against steps that are not finite."""

from typing import Any

import torch
from torch import Tensor

ADAM_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter from step to step."""


def build_optimizer(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """Build AdamW; learning rate and weight decay are set at every step.

    The betas are 0.9 and 0.999, eps is 1e-8.
    """
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def set_hyperparameters(
    optimizer: torch.optim.Optimizer, *, learning_rate: float, weight_decay: float
) -> None:
    """Set the learning rate of every group, and the weight decay of the decayed ones."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if group["decayed"]:
            group["weight_decay"] = weight_decay


class FiniteGuard:
    """Remembers the first step whose loss or gradient norm is not finite, without a host sync.

    Args:
        device: where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)

    def update(self, step: int, *values: Tensor) -> Tensor:
        """Check the values of a step; return a scalar, 1. from the first bad step on, else 0."""
        bad = ~torch.stack([value.detach() for value in values]).isfinite().all()
        self._first_bad = torch.where(bad & (self._first_bad < 0), step, self._first_bad)
        return (self._first_bad >= 0).float()

    def first_bad_step(self) -> int | None:
        """Give the first step that was not finite, if there was one. Waits for the device."""
        step = int(self._first_bad)
        return None if step < 0 else step


def step_unless(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Take an optimizer step, which a fused optimizer skips on the device where `bad` is 1."""
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    optimizer.step()


class MomentumSGD(torch.optim.Optimizer):
    """SGD whose momentum buffer holds steps, not gradients, as in MSN's linear evaluation.

    A learning rate scales the gradients of its own step and is kept with them: torch's SGD scales
    the whole buffer by the newest rate, so the two differ where the rate changes.

    Args:
        groups: parameter groups with their "lr" and, where there is one, "weight_decay".
        momentum: share of the last step that is repeated.
        nesterov: look one step of the momentum ahead.
    """

    MOMENTS = ("steps",)

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float = 0.9, nesterov: bool = True
    ) -> None:
        self.momentum, self.nesterov = momentum, nesterov
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step, leaving the gradients as they are."""
        for group in self.param_groups:
            for parameter in group["params"]:
                move = parameter.grad * -group["lr"]
                if group["weight_decay"]:
                    move.add_(parameter, alpha=-group["lr"] * group["weight_decay"])
                state = self.state[parameter]
                if "steps" not in state:
                    state["steps"] = torch.zeros_like(parameter)
                steps = state["steps"].mul_(self.momentum).add_(move)
                parameter.add_(move.add_(steps, alpha=self.momentum) if self.nesterov else steps)


class LARS(torch.optim.Optimizer):
    """SGD with a step in proportion to each weight's norm (arXiv 1708.03888), as in MAE's probe.

    A gradient, with its weight decay, is scaled by trust * |weight| / |gradient| before it enters
    the momentum; the learning rate scales what comes out. Parameters of one dimension are neither
    decayed nor scaled, nor is anything scaled where either norm is 0.

    Args:
        groups: parameter groups with their "lr" and, where there is one, "weight_decay".
        momentum: share of the sum so far that is kept.
        trust: length of a step over that of the weight, at a learning rate of 1.
    """

    MOMENTS = ("momentum",)

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float = 0.9, trust: float = 0.001
    ) -> None:
        self.momentum, self.trust = momentum, trust
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step, leaving the gradients as they are."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if parameter.ndim > 1:
                    gradient = gradient.add(parameter, alpha=group["weight_decay"])
                    norms = parameter.norm(), gradient.norm()
                    ratio = self.trust * norms[0] / norms[1]
                    gradient *= torch.where(norms[0] * norms[1] > 0, ratio, 1.0)
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].mul_(self.momentum).add_(gradient)
                parameter.add_(state["momentum"], alpha=-group["lr"])
