"""The projection head on the class token."""

from collections import OrderedDict

from torch import nn

from msn.models.batch_norm import BatchNorm


def projection_head(in_dim: int, hidden_dim: int, out_dim: int, *, batch_norm: bool) -> nn.Module:
    """Build three linear layers with GELU: (B, in_dim) -> (B, out_dim) (paper appendix A.1).

    With `batch_norm` the two hidden layers are normalized over the batch, in training mode by the
    statistics of the call over all processes: random and focal views, passed in two calls, are
    normalized apart. Parameter names are the official ones: fc1, bn1, fc2, bn2, fc3.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["fc1"] = nn.Linear(in_dim, hidden_dim)
    if batch_norm:
        layers["bn1"] = BatchNorm(hidden_dim)
    layers["act1"] = nn.GELU()
    layers["fc2"] = nn.Linear(hidden_dim, hidden_dim)
    if batch_norm:
        layers["bn2"] = BatchNorm(hidden_dim)
    layers["act2"] = nn.GELU()
    layers["fc3"] = nn.Linear(hidden_dim, out_dim)
    return nn.Sequential(layers)
