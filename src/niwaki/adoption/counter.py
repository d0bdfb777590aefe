"""Multiply-adds counted by PyTorch while a module runs: what predictions are checked against, and the only count of what is opaque."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from niwaki.adoption.batch import buffers_kept, one_row
from niwaki.adoption.capture import Captured
from niwaki.adoption.flat import ByName


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """PyTorch's counter, with fused kernels that it counts as nothing (attention, recurrent layers) replaced by the products they fuse."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of switching oneDNN off
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            yield stack.enter_context(FlopCounterMode(display=False))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def counted_macs(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Multiply-adds of convolutions, linear layers and products of tensors in one call: half of PyTorch's count of operations."""
    with counting() as counter:
        module(*args, **kwargs)
    return counter.get_total_flops() // 2


def macs_of_nodes(captured: Captured, nodes: Iterable[fx.Node]) -> Mapping[fx.Node, int]:
    """Multiply-adds of single nodes of a captured graph, on one row of the example where the batch size is free."""
    wanted = [node for node in nodes if node.op == "call_function"]
    if not wanted:
        return {}
    found: dict[fx.Node, int] = {}

    class Counter(ByName):
        def run_node(self, n: fx.Node) -> Any:
            if n not in wanted:
                return super().run_node(n)
            with counting() as counter:
                result = super().run_node(n)
            found[n] = counter.get_total_flops() // 2
            return result

    values = captured.bound if captured.batch is None else one_row(captured.bound, captured.batch)
    with buffers_kept(captured.owner), torch.no_grad():
        Counter(captured.graph, captured.owner, values).run()
    return found
