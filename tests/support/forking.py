"""Processes that start at once: forked from one that has imported what they use."""

import multiprocessing

PRELOADED = (
    # Our own, and the libraries that they import where they use them.
    *("torch", "torch._dynamo", "torch.distributed.fsdp", "msn.data.color", "msn.models.block"),
    *("msn.train.pretraining", "msn.cli.pretrain", "tests.support.experiments"),
)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PRELOADED))
