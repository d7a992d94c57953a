"""A network that is mainly a stack of transformer blocks: an encoder, or MAE's decoder."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from msn.models.encoder import Staged


class BlockStack(Staged):
    """What all networks with `blocks`, each with `attn`, share.

    Attributes:
        COMPILED: which blocks are worth compiling.
    """

    COMPILED: ClassVar[slice] = slice(None)

    # Any: to mypy a member of a module is a Tensor or a Module, which has no `attn`.
    blocks: Any
    _recompute = False

    def use_fused_attention(self, fused: bool) -> None:
        """Choose PyTorch's fused attention or plain matrix products, with equal results.

        Fused is the default and the faster choice, but for bfloat16 on a CPU, whose fused backward
        pass takes three to five times as long.
        """
        for block in self.blocks:
            block.attn.fused_attn = fused

    def recompute_activations(self, recompute: bool) -> None:
        """Keep only the input of each block, and recompute the rest in the backward pass.

        About a third more time for a fraction of the memory; the values are the same.
        """
        self._recompute = recompute

    def compile_blocks(self) -> None:
        """Compile the blocks when they are first used, for every shape that they meet.

        By block, as all blocks are alike and one is compiled in a fraction of the time of the
        whole; sharding and the exchange of gradients meet whole blocks, too. Names are unchanged.
        """
        # Views of three sizes and stochastic depth of each block: more variants than the 8 after
        # which torch gives up.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 128)
        for block in self.blocks[self.COMPILED]:
            block.compile(dynamic=False)

    def _run(self, block: nn.Module, tokens: Tensor, beside: tuple[Any, ...] = ()) -> Tensor:
        """Run a block on all tokens, keeping its activations or not."""
        if self._recompute and torch.is_grad_enabled():
            again: Tensor = checkpoint(block, tokens, *beside, use_reentrant=False)
            return again
        out: Tensor = block(tokens, *beside)
        return out
