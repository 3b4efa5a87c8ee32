"""dualize refuses, in one line that names the culprit, what it cannot pair, and notices when it went wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from duals import ALL, Net, Outputs, check, randn, seeded
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from prefiqs_ext import ops
from prefiqs_ext.dual import dualize
from prefiqs_ext.exceptions import InputError, InputTypeError, PrefiqsError, UnsupportedNetworkError
from prefiqs_ext.pruning import Pruning

ROW_MIXING: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "cat": lambda m, x: torch.cat([x, x]),
    "sum_1": lambda m, x: torch.stack([x, x]).sum(1),
    "softmax": lambda m, x: x.softmax(0),
    "sum": lambda m, x: x - x.sum(0),
    "mean": lambda m, x: x - x.mean(0, keepdim=True),
    "norm": lambda m, x: x / x.norm(),
    "max": lambda m, x: x - x.max(0)[0],
    "sort": lambda m, x: x.sort(0)[0],
    "flip": lambda m, x: x.flip(0),
    "roll": lambda m, x: x.roll(1, 0),
    "cumsum": lambda m, x: x.cumsum(0),
    "adaptive_avg_pool2d": lambda m, x: x.permute(3, 1, 2, 0),
    "getitem": lambda m, x: x[0],
    "getitem_1": lambda m, x: x - x[-1:],
    "select": lambda m, x: x - x.select(0, 0),
    "unbind": lambda m, x: x.unbind(0)[0],
    "chunk": lambda m, x: x.chunk(2)[0],
    "free": lambda m, x: m.free(x),
    "batch_norm": lambda m, x: F.batch_norm(x, None, None, training=True),
    "matmul": lambda m, x: x.flatten(1) @ x.flatten(1).mT,
    "einsum": lambda m, x: torch.einsum("nchw,ndhw->cd", x, x)[None, :, :, None],
    "einsum_1": lambda m, x: torch.einsum("nchw,mchw->nm", x, x)[:, :, None, None],
    "normalize": lambda m, x: F.normalize(x, dim=0),
    "scaled_dot_product_attention": lambda m, x: F.scaled_dot_product_attention(*[x.flatten(1)] * 3)[:, :, None, None],
    "repeat": lambda m, x: x.repeat(2, 1, 1, 1),
    "truediv": lambda m, x: x / x.shape[0],
    "sub": lambda m, x: x.flatten(1).view(x.shape[0] - 1 + 1, 4, 4, 4),
    "arange": lambda m, x: x.index_select(0, torch.arange(x.shape[0])),
    "gather": lambda m, x: x.gather(0, torch.zeros_like(x).long()),
    "std": lambda m, x: x / x.std(),
    "bernoulli": lambda m, x: x * torch.bernoulli(torch.sigmoid(x)),
}


def check_message(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert message.startswith("dualize: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ROW_MIXING)
def test_operations_that_mix_rows_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"row|batch") as error:
        dualize(Net(ROW_MIXING[name]), example=randn(2, 3, 6, 6))
    what = name.removesuffix("_1")
    assert f"'{what}'" in check_message(error) or f"'Tensor.{what}'" in str(error.value)


def test_rows_that_do_not_come_back_to_dim_0_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected an embedding, .* got \[4, 4\] with the batch in dim 1 for N = 1"
    ) as error:
        dualize(Net(lambda m, x: x.transpose(0, 1)), example=randn(2, 3, 6, 6))
    check_message(error)
    with pytest.raises(ValueError, match="the convolution 'late' reads a value whose batch is in dim 2") as error:
        dualize(Net(lambda m, x: m.late(x.permute(2, 1, 0, 3)).permute(2, 1, 0, 3)), ALL, example=randn(2, 3, 6, 6))
    check_message(error)


def test_one_constant_row_for_all() -> None:
    """A parameter expanded to the one row that was exported cannot be told from a parameter without batch."""
    model = Net(lambda m, x: torch.cat([x.flatten(2).mT, m.token.expand(1, 1, -1)], 1).mT.unsqueeze(-1))
    with pytest.raises(ValueError, match=r"'cat' .*works for a batch of 1 but not of 3") as error:
        dualize(model, example=randn(1, 3, 6, 6))
    check_message(error)


class Attention(nn.Module):
    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.module, self.call = nn.Conv2d(3, 4, 3), module, call
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.module, self.stem(x).flatten(2).mT).mean(1)


HIDDEN: dict[str, tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]] = {
    "attention": (nn.MultiheadAttention(4, 2, batch_first=True), lambda m, x: m(x, x, x)[0]),
    "encoder": (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), lambda m, x: m(x)),
    "lstm": (nn.LSTM(4, 4, batch_first=True), lambda m, x: m(x)[0]),
    "cell": (nn.GRUCell(4, 4), lambda m, x: m(x[:, 0]).unsqueeze(1)),
}


def branching(call: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    """Looks at a shape, as torch.fx cannot: such a model is exported, and no call of its modules is left."""
    return lambda m, x: call(m, x) if x.shape[-1] == 4 else x


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_weights_are_refused(name: str, exported: bool) -> None:
    module, call = HIDDEN[name]
    with pytest.raises(ValueError, match="cannot see into the weights of 'module") as error:
        dualize(Attention(module, branching(call) if exported else call), example=randn(2, 3, 6, 6))
    hidden = module.self_attn if exported and name == "encoder" else module
    assert type(hidden).__name__ in check_message(error)


class Standardised(nn.Conv2d):
    """A convolution that does not use its weight as it is."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def test_a_computed_weight_is_refused_only_where_it_is_pruned() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), Standardised(4, 4, 3), nn.Flatten()))
    x = randn(2, 3, 6, 6)
    check(model, x, Pruning(layers="0"))
    with pytest.raises(ValueError, match=r"the pruned weight of '1' is used by 'Tensor\.mean' in '1'") as error:
        dualize(model, example=x)
    check_message(error)


def changed(change: Callable[[Net], object]) -> nn.Module:
    model = Net(lambda m, x: x * m.gain)
    change(model)
    return model


def put_nan(model: Net) -> None:
    model.gain.data[0] = torch.nan


def scripted(m: Net, x: Tensor) -> Tensor:
    return x if bool(x.sum() > 0) else -x


def writes_in_place(m: Net, x: Tensor) -> Tensor:
    return x * m.count.add_(1)


def writes_anew(m: Net, x: Tensor) -> Tensor:
    m.count = m.count + 1
    return x * m.count


def counting(forward: Callable[[Net, Tensor], Tensor]) -> nn.Module:
    model = Net(forward)
    model.register_buffer("count", torch.ones(()))
    return model


BAD_MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "train mode": (lambda: changed(lambda m: m.train()), "'the model' is in train mode: call model.eval"),
    "part in train mode": (lambda: changed(lambda m: m.free.train()), "'free' is in train mode: call model.eval"),
    "float64": (lambda: changed(lambda m: m.double()), "expected float32 parameters, got torch.float64 in 'token'"),
    "half": (lambda: changed(lambda m: m.half()), "expected float32 parameters, got torch.float16 in 'token'"),
    "control flow": (
        lambda: Net(scripted),
        "cannot trace Net, neither by torch.fx .* nor by torch.export .*must not branch on tensor values",
    ),
    "hook": (lambda: changed(lambda m: m.conv.register_forward_hook(print)), "'conv' has forward hooks"),
    "torch's pruning": (
        lambda: changed(lambda m: prune.l1_unstructured(m.conv, "weight", 0.5)),
        "'conv' has forward hooks.* prune.remove",
    ),
    "parametrization": (
        lambda: changed(lambda m: parametrizations.weight_norm(m.conv).eval()),
        "'conv' computes its weight: .*remove_parametrizations",
    ),
    "nan": (lambda: changed(put_nan), "the model gives NaN or infinity"),
    "no embedding": (
        lambda: Outputs(lambda x, e: (x, e.argmax(1))),
        r"expected an embedding, .* got \[1, 4, 4, 4\], \[1\] for N = 1",
    ),
    "no tensor": (lambda: Outputs(lambda x, e: None), "expected an embedding, .* got no tensor"),
    "other input": (lambda: seeded(nn.Sequential(nn.Conv2d(5, 4, 3), nn.Flatten())), "fails on one row.*'0' .Conv2d."),
    "two inputs": (lambda: Bilinear(), "cannot trace Bilinear, .*missing 1 required positional argument"),
    "buffer written in place": (lambda: counting(writes_in_place), "the forward writes to the buffer 'count'"),
    "buffer written anew": (lambda: counting(writes_anew), "the forward writes to the buffer 'count'"),
    "exported, buffer written": (
        lambda: counting(branching(writes_in_place)),
        "the forward writes to the buffer 'count'",
    ),
    "exported, train mode": (
        lambda: Net(branching(lambda m, x: F.batch_norm(x, None, None, training=True))),
        "mixes the rows of the batch",
    ),
    "layer on a parameter": (
        lambda: Net(lambda m, x: x + m.linear(m.token).view(1, 4, 1, 1)),
        "the pruned layer 'linear' reads a value without a batch",
    ),
}


# A network that could be paired, after the call that the message names.
WRONG_STATES = ("train mode", "part in train mode", "float64", "half")


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.linear(x) * y


@pytest.mark.parametrize("name", BAD_MODELS)
def test_models_that_are_refused(name: str) -> None:
    build, message = BAD_MODELS[name]
    kind = InputError if name in WRONG_STATES else UnsupportedNetworkError
    with pytest.raises(kind, match=message) as error:
        dualize(build(), ALL, example=randn(2, 3, 6, 6))
    check_message(error)


def test_a_model_without_layers_is_refused() -> None:
    for pruning in (Pruning(), {}):
        with pytest.raises(ValueError, match="the model has no convolution or linear layer"):
            dualize(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).eval(), pruning, example=randn(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (None, "expected an example .* got NoneType"),
        (torch.zeros(3), r"expected an example .* got \[3\]"),
        (torch.zeros(0, 3, 6, 6), r"expected an example .* got \[0, 3, 6, 6\]"),
        (torch.zeros(1, 3, 6, 6, dtype=torch.int64), "expected a floating or uint8 example, got torch.int64"),
    ],
)
def test_bad_examples(example: Tensor, message: str) -> None:
    with pytest.raises(InputTypeError if example is None else InputError, match=message) as error:
        dualize(Net(lambda m, x: x), example=example)
    check_message(error)


def test_bad_masks() -> None:
    model, x = Net(lambda m, x: x), randn(1, 3, 6, 6)
    for masks, message in (
        ({"nothing": torch.ones(4, dtype=torch.bool)}, "got one for 'nothing'"),
        ({"free": torch.ones(4, dtype=torch.bool)}, "got one for 'free'"),
        ({"conv": torch.ones(4, 3, 3, 3)}, r"expected a bool mask \[4, 3, 3, 3\] for 'conv', got torch.float32"),
        ({"conv": torch.ones(4, 3, 3, dtype=torch.bool)}, r"for 'conv', got torch.bool \[4, 3, 3\]"),
    ):
        with pytest.raises(InputError, match=message) as error:
            dualize(model, masks, example=x)
        check_message(error)
    with pytest.raises(InputTypeError, match=r"expected a torch\.nn\.Module, got str"):
        dualize("sface", example=x)  # type: ignore[arg-type]


def swapped(*args: object, **options: object) -> Tensor:
    return torch.cat(CONV2D(*args, **options).chunk(2)[::-1])


def masked_away(src: Tensor, weight: Tensor, mask: Tensor | None, *args: object, **options: object) -> Tensor:
    return CONV2D(src, weight, None if mask is None else mask | -1, *args, **options)


def reversed_rows(*args: object, **options: object) -> Tensor:
    halves = CONV2D(*args, **options).chunk(2)
    return torch.cat([half.flip(0) for half in halves])


CONV2D: Callable[..., Tensor] = ops.dual_conv2d


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (swapped, "the (dense|pruned) half and the model"),
        (masked_away, "the pruned half and the model with masked weights at N = [13]"),
        (reversed_rows, "rows and permuted rows"),
    ],
)
def test_the_self_check_fails(wrong: Callable[..., Tensor], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "dual_conv2d", wrong)
    with pytest.raises(RuntimeError, match=f"self-check failed: {message}.* differ by .*: please report this") as error:
        dualize(Net(lambda m, x: x), example=randn(1, 3, 6, 6))
    assert not isinstance(error.value, PrefiqsError)  # a fault of the package, not of the caller
    check_message(error)
