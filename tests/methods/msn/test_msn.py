"""MSN as a model: views in, losses out, the target behind."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from msn.data.batch import Views
from msn.methods.msn.model import MSN
from msn.train.build import Parts
from tests.support.experiments import batches, msn_of, tiny_parts


def gradients(model: MSN) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def run(parts: Parts, views: Views, step: int = 0) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients in double precision."""
    model = msn_of(parts).double()
    output = model(views.each(Tensor.double), step=step)
    output.loss.backward()
    return float(output.loss.detach()), gradients(model)


def test_every_trainable_parameter_learns_and_the_target_does_not(tmp_path: Path) -> None:
    parts = tiny_parts(tmp_path)
    _, grads = run(parts, batches(parts, 32, 1)[0])
    expected = {f"anchor.{name}" for name, _ in msn_of(parts).anchor.named_parameters()}
    assert grads.keys() == expected | {"prototypes"}
    assert all(grad.isfinite().all() for grad in grads.values())
    assert float(grads["prototypes"].abs().max()) > 0
    assert not any(parameter.requires_grad for parameter in msn_of(parts).target.parameters())


@pytest.mark.slow
def test_recomputed_activations_give_the_same_gradients_from_less_memory(tmp_path: Path) -> None:
    """Also where stochastic depth draws, and under accumulation, which recomputes as well."""
    kept: dict[bool, int] = {}
    for accumulate in (1, 2):
        found = []
        for recompute in (False, True):
            parts = tiny_parts(
                tmp_path,
                criterion__batch_size=32 // accumulate,
                meta__encoder={"patch_size": 2, "embed_dim": 16, "depth": 6, "num_heads": 2},
                meta__checkpoint_activations=recompute,
                meta__drop_path_rate=0.2,
                optimization__accumulate=accumulate,
            )
            sizes: list[int] = []

            def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
                sizes.append(tensor.nbytes)
                return tensor

            torch.manual_seed(0)
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                found.append(run(parts, batches(parts, 32, 1)[0]))
            kept[recompute] = sum(sizes)
        (loss, grads), (again, grads_again) = found
        assert again == loss
        for name, grad in grads.items():
            assert torch.equal(grads_again[name], grad), name
        if accumulate == 1:
            assert kept[True] < kept[False] / 2


def test_frozen_prototypes_do_not_learn(tmp_path: Path) -> None:
    parts = tiny_parts(tmp_path, criterion__freeze_proto=True)
    _, grads = run(parts, batches(parts, 32, 1)[0])
    assert "prototypes" not in grads
    grouped = [p for group in parts.optimizer.param_groups for p in group["params"]]
    assert all(p is not msn_of(parts).prototypes for p in grouped)


@pytest.mark.parametrize("scope", ["batch", "image"])
def test_accumulating_is_the_same_as_a_large_batch(tmp_path: Path, scope: str) -> None:
    """Sinkhorn, the mean assignment and the masks are those of the whole batch."""
    whole = tiny_parts(
        tmp_path, criterion__batch_size=32, meta__use_bn=False, data__mask_scope=scope
    )
    parts = tiny_parts(
        tmp_path,
        criterion__batch_size=8,
        optimization__accumulate=4,
        meta__use_bn=False,
        data__mask_scope=scope,
    )
    views = batches(whole, 32, 1)[0]
    loss, grads = run(whole, views)
    loss_in_parts, grads_in_parts = run(parts, views)
    assert loss_in_parts == pytest.approx(loss, rel=1e-12)
    assert grads.keys() == grads_in_parts.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grads_in_parts[name], grad, msg=name)


def test_accumulating_updates_batch_norm_once_for_each_part(tmp_path: Path) -> None:
    parts = tiny_parts(tmp_path, criterion__batch_size=16, optimization__accumulate=2)
    views = batches(parts, 32, 1)[0]
    by_hand = msn_of(tiny_parts(tmp_path)).double()
    for part in views.each(Tensor.double).micro_batches(2):
        keep = by_hand.draw_keep(part, step=0)[0]
        by_hand.anchor(part["random"].flatten(0, 1), keep)
        by_hand.anchor(part["focal"].flatten(0, 1))
    run(parts, views)
    for name, buffer in by_hand.anchor.named_buffers():
        torch.testing.assert_close(msn_of(parts).anchor.get_buffer(name), buffer, msg=name)


def test_stochastic_depth_draws_the_same_when_recomputed(tmp_path: Path) -> None:
    """With another draw in the recomputation the gradients would be of another network."""
    settings = {"meta__drop_path_rate": 0.5, "meta__use_bn": False}
    parts = tiny_parts(tmp_path, criterion__batch_size=8, optimization__accumulate=2, **settings)
    views = batches(parts, 16, 1)[0]
    torch.manual_seed(3)
    _, grads = run(parts, views)

    by_hand = msn_of(tiny_parts(tmp_path, criterion__batch_size=8, **settings)).double()
    keep = by_hand.draw_keep(views, step=0)[0]
    torch.manual_seed(3)
    anchors, targets = [], []
    for part in views.each(Tensor.double).micro_batches(2):
        random = by_hand.anchor(part["random"].flatten(0, 1), keep).unflatten(0, (1, 8))
        focal = by_hand.anchor(part["focal"].flatten(0, 1)).unflatten(0, (2, 8))
        anchors.append(torch.cat([random, focal]))
    with torch.no_grad():
        targets = [by_hand.target(part["target"][0].double()) for part in views.micro_batches(2)]
    by_hand.losses_of(
        torch.cat(anchors, dim=1).flatten(0, 1), torch.cat(targets), 0
    ).total.backward()
    for name, grad in gradients(by_hand).items():
        torch.testing.assert_close(grads[name], grad, msg=name)


def test_masks_differ_by_step_and_only_random_views_lose_patches(tmp_path: Path) -> None:
    model = msn_of(tiny_parts(tmp_path, data__focal_size=8))  # as large as the random view
    views = batches(tiny_parts(tmp_path, data__focal_size=8), 32, 1)[0]
    (first,), (second,) = model.draw_keep(views, 0), model.draw_keep(views, 1)
    assert first is not None
    assert second is not None
    assert len(first) == 12  # floor(16 * .75)
    assert not torch.equal(first, second)
    tokens: list[int] = []
    model.anchor.blocks[0].register_forward_pre_hook(
        lambda _, args: tokens.append(args[0].shape[1])
    )
    model(views, step=0)
    assert tokens == [13, 17]


def test_without_focal_views(tmp_path: Path) -> None:
    parts = tiny_parts(tmp_path, data__focal_views=0)
    views = batches(parts, 32, 1)[0]
    assert len(views["focal"]) == 0
    loss, grads = run(parts, views)
    assert loss == pytest.approx(loss)
    assert all(grad.isfinite().all() for grad in grads.values())


def test_the_target_follows_by_the_momentum_and_keeps_its_own_buffers(tmp_path: Path) -> None:
    parts = tiny_parts(tmp_path, optimization__ema=(0.9, 1.0))
    model = msn_of(parts)
    before = {name: value.clone() for name, value in model.target.state_dict().items()}
    with torch.no_grad():
        for parameter in model.anchor.parameters():
            parameter.add_(torch.randn_like(parameter))
        for buffer in model.anchor.buffers():
            buffer.add_(1)
    step = 7
    model.after_step(step)
    momentum = msn_of(parts).momentum(step)
    assert 0.9 < momentum < 1
    anchor = dict(model.anchor.named_parameters())
    for name, value in model.target.state_dict().items():
        if name in anchor:
            expected = momentum * before[name] + (1 - momentum) * anchor[name]
            torch.testing.assert_close(value, expected, msg=name)
        else:
            assert torch.equal(value, before[name]), name


def test_both_encoders_stay_in_training_mode(tmp_path: Path) -> None:
    """The target's BatchNorm uses the statistics of its batch, and counts it."""
    parts = tiny_parts(tmp_path)
    run(parts, batches(parts, 32, 1)[0])
    assert msn_of(parts).anchor.get_buffer("fc.bn1.num_batches_tracked") == 2  # random, focal
    assert msn_of(parts).target.get_buffer("fc.bn1.num_batches_tracked") == 1


def test_prototypes_start_within_their_bound(tmp_path: Path) -> None:
    prototypes = msn_of(tiny_parts(tmp_path, criterion__num_proto=512)).prototypes.detach()
    bound = 8**-0.5
    assert float(prototypes.abs().max()) <= bound
    assert float(prototypes.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_metrics_are_those_of_the_targets(tmp_path: Path) -> None:
    parts = tiny_parts(tmp_path)
    with torch.no_grad():
        output = parts.model(batches(parts, 32, 1)[0], step=0)
    metrics = parts.model.metrics(output)
    losses = output.details.losses
    targets = losses.log_targets.exp()
    firsts = {int(row.argmax()) for row in targets}
    tops = [float(row.max()) for row in targets]
    mean = losses.log_mean_assignment.exp()
    assert metrics["np"] == len(firsts)
    assert float(metrics["max_t"]) == pytest.approx(sum(tops) / len(tops))
    assert float(metrics["proto_entropy"]) == pytest.approx(-float((mean * mean.log()).sum()))
    assert float(metrics["msn"]) == pytest.approx(float(losses.cross_entropy))
    assert float(metrics["me_max"]) == pytest.approx(float(losses.regularizer))
    assert float(metrics["ent"]) == pytest.approx(float(losses.entropy))


def test_weights_are_all_that_is_kept(tmp_path: Path) -> None:
    kept = tiny_parts(tmp_path).model.state_dict()
    assert {name.split(".")[0] for name in kept} == {"anchor", "target", "prototypes"}
