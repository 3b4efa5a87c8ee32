"""FROQ against a plain float64 twin of its labels, SciPy's ranks, and networks with planted layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import calibrate, calibrated, network_input, pictures
from scipy.stats import rankdata
from torch import Tensor, nn

from prefiqs_ext import Preset, methods
from prefiqs_ext.exceptions import FileAccessError, NotFittedError
from prefiqs_ext.methods import FROQ
from prefiqs_ext.methods.froq import LayerSelection, compute_pseudo_labels, select_columns

# Neither square, nor divided by 8, nor on the scale of -1 to 1.
PRESET = Preset("odd", (36, 44), "bgr", (100.0, 110.0, 125.0), (50.0, 60.0, 70.0))
IMAGES = pictures(24, (36, 44), seed=2)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return calibrated("residual")


@pytest.fixture(scope="module")
def fitted(network: nn.Module) -> FROQ:
    method = methods.create("froq", network, PRESET, seed=3)
    assert isinstance(method, FROQ)
    assert method.fit_images == 200
    method.fit(IMAGES)
    return method


def plain_label(levels: Tensor, network: nn.Module, noise: Tensor) -> float:
    """One image [3, H, W] of 0-255: perturbed as a picture of -1 to 1, one pass at a time, float64 throughout."""

    def embedded(picture: Tensor) -> Tensor:
        bgr = (127.5 * (picture + 1)).flip(0)
        mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (PRESET.mean, PRESET.std))
        with torch.no_grad():
            out = network(((bgr - mean) / std)[None])[0]
        return out / out.norm()

    picture = levels.double() / 127.5 - 1
    plain = embedded(picture)
    flip = float(plain @ embedded(torch.flip(picture, (2,))))
    noisy = []
    for mask in noise.flip(1).double():  # drawn for the network's channels
        noisy += [float(plain @ embedded((1 - a) * picture + a * mask)) for a in (0.001, 0.002, 0.005)]
    hidden = []
    height, width = picture.shape[1:]
    for i in range(8):
        for j in range(8):
            occluded = picture.clone()
            rows = slice(-(-i * height // 8), -(-(i + 1) * height // 8))
            columns = slice(-(-j * width // 8), -(-(j + 1) * width // 8))
            occluded[:, rows, columns] = -1
            hidden.append(float(plain @ embedded(occluded)))
    return (flip + sum(noisy) / len(noisy) + sum(hidden) / len(hidden)) / 3


def test_pseudo_labels_are_the_plain_ones(network: nn.Module) -> None:
    found = compute_pseudo_labels(IMAGES[:3], network, PRESET, seed=5)
    noise = torch.randn(10, 3, 36, 44, generator=torch.Generator().manual_seed(5))
    # The mask has the order of the network's channels, and the picture that of RGB.
    double = calibrated("residual").double()
    expected = [plain_label(image, double, noise) for image in IMAGES[:3]]
    # Cosines of embeddings of length 1 that float32 rounds by some 1e-6.
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)


def greedy(norms: np.ndarray, labels: np.ndarray) -> tuple[tuple[int, ...], float]:
    """The same from definitions: every prefix by brute force over sets, Spearman as Pearson of SciPy's ranks."""

    def rho(columns: tuple[int, ...]) -> float:
        ranks = rankdata(sum(norms[:, c] for c in columns)), rankdata(labels)
        return float(np.corrcoef(ranks)[0, 1])

    single = {c: rho((c,)) for c in range(norms.shape[1]) if len(set(norms[:, c])) > 1}
    ten = sorted(single, key=lambda c: (-single[c], c))[:10]
    sets = [(ten[0],)]
    while len(sets) < len(ten):
        sets.append(max(((*sets[-1], c) for c in ten if c not in sets[-1]), key=lambda s: (rho(s), -ten.index(s[-1]))))
    best = max(sets, key=lambda s: (rho(s), -len(s)))
    return best, rho(best)


@pytest.mark.parametrize(("seed", "modules"), [(0, 3), (1, 10), (2, 17), (3, 40), (4, 1)])
def test_selection_is_the_greedy_one(seed: int, modules: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.random(50).round(2)  # some are equal
    norms = generator.random((50, modules)) + generator.uniform(-0.5, 1, modules) * labels[:, None]
    if modules > 5:
        norms[:, 2], norms[:, 4] = 7.0, norms[:, 1]
    chosen, correlation = select_columns(norms, labels)
    expected, reached = greedy(norms, labels)
    assert correlation == pytest.approx(reached, abs=1e-12)
    assert tuple(chosen) == expected


def test_selection_leaves_out_what_has_no_rank() -> None:
    labels = np.linspace(0, 1, 30)
    useless = np.stack([np.full(30, 2.0), 1 + 1e-8 * labels, np.where(labels > 0.5, np.inf, labels)], axis=1)
    assert select_columns(np.column_stack([useless, labels**2]), labels) == ([3], pytest.approx(1))
    with pytest.raises(ValueError, match="modules whose norms differ"):
        select_columns(useless, labels)
    with pytest.raises(ValueError, match="modules whose norms differ"):
        select_columns(np.empty((30, 0)), labels)
    with pytest.raises(ValueError, match="pseudo-labels that are all equal"):
        select_columns(useless, np.ones(30))


class Scramble(nn.Module):
    """Norms that have nothing to do with the image's contrast."""

    def forward(self, x: Tensor) -> Tensor:
        return 100 * torch.frac(1e4 * x.mean((2, 3)).abs())


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


class Weaker(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-10 * x.square().mean((1, 2, 3)))[:, None]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[str, Tensor, Tensor]:
        return "no tensor", x[:, :1], x


class Batch(nn.Module):
    """Sees the other images: what no score may depend on."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((0, 2, 3), keepdim=True)


class Planted(nn.Module):
    """The embedding is a linear map of the image: the more contrast, the less a black cell turns it."""

    def __init__(self) -> None:
        super().__init__()
        self.scramble, self.unit, self.weaker, self.pair = Scramble(), Unit(), Weaker(), Pair()
        self.signal = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.again = nn.Sequential(nn.ReLU(inplace=True))
        self.unused = nn.Linear(2, 2)
        self.fc = nn.Linear(8 * 16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        nothing = self.scramble(x).sum(1) + self.unit(x).sum((1, 2, 3)) + self.weaker(x).sum(1)
        s = self.again(self.signal(self.pair(x)[2]))
        s = self.again(2 * s)  # twice: its last output counts
        return self.fc(nn.functional.adaptive_avg_pool2d(s, 4).flatten(1)) + 0 * nothing[:, None]


def contrasts(count: int) -> Tensor:
    """Pictures of one kind around grey, each its own mirror image, from no contrast to full."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.nn.functional.interpolate(torch.randn(count, 3, 6, 6, generator=generator), (36, 44), mode="bilinear")
    kind = kind + kind.flip(3)
    contrast = torch.linspace(3, 60, count)[torch.randperm(count, generator=generator)]
    return (127.5 + contrast[:, None, None, None] * kind).clamp(0, 255).to(torch.uint8)


def test_finds_planted_layers() -> None:
    preset = Preset("grey", (36, 44), "rgb", (127.5,) * 3, (127.5,) * 3)
    torch.manual_seed(0)
    network = Planted().eval()
    method = FROQ(network, preset)
    images = contrasts(40)
    method.fit(images)
    assert method.selection is not None
    assert set(method.selection.modules) <= {"pair", "signal", "again", "again.0", "fc"}
    assert method.selection.correlation > 0.9
    # Each of them is the norm of what the module last gave, before anything wrote to it.
    with torch.no_grad():
        x = network_input(images)
        kept = torch.relu(network.signal(x))
        known = {"pair": x[:, :1], "signal": network.signal(x), "fc": network(x)}
        known |= dict.fromkeys(("again", "again.0"), 2 * kept)
    names, norms = method._measure_candidates(images)
    assert names == [name for name, _ in network.named_modules() if name not in ("", "unused")]
    for name, value in known.items():
        expected = value.flatten(1).double().square().sum(1).sqrt().numpy()
        np.testing.assert_allclose(norms[:, names.index(name)], expected, rtol=1e-5)
    mean = norms[:, [names.index(name) for name in method.selection.modules]].mean(1)
    np.testing.assert_allclose(method.score(images).numpy(), mean, rtol=1e-5)


def test_modules_that_mix_images_are_no_candidates() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Batch(), nn.Flatten(), nn.Linear(4 * 34 * 42, 8)).eval()
    assert FROQ(network, PRESET)._measure_candidates(IMAGES)[0] == ["0"]


def test_large_norms_do_not_overflow() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 34 * 42, 8)).eval()
    with torch.no_grad():
        network[0].weight.mul_(1e25)
        network[2].weight.mul_(1e-25)
    assert np.isfinite(FROQ(network, PRESET)._measure_candidates(IMAGES)[1]).all()


def tiny() -> nn.Module:
    return calibrate(
        nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.PReLU(8), nn.Flatten(), nn.Linear(640, 16)),
        network_input(IMAGES),
    )


def test_goes_by_its_seed() -> None:
    network, images = tiny(), pictures(50, (36, 44), seed=6)
    found = []
    for seed in (3, 3, 4):
        method = FROQ(network, PRESET, seed=seed, fit_images=40)  # of the 50, drawn
        method.fit(images)
        assert method.selection is not None
        assert method.selection.images == 40
        found.append(method.selection)
    assert found[0] == found[1]
    assert found[0].correlation != found[2].correlation
    same, again, other = (compute_pseudo_labels(images[:2], network, PRESET, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(same, again)
    assert not np.array_equal(same, other)


def test_batch_does_not_matter(network: nn.Module, fitted: FROQ) -> None:
    scores = fitted.score(IMAGES)
    assert scores.dtype == torch.float32
    assert scores.shape == (24,)
    alone = torch.cat([fitted.score(IMAGES[i : i + 1]) for i in range(24)])
    torch.testing.assert_close(scores, alone, rtol=1e-5, atol=0)  # torch's own convolutions
    assert fitted.score(IMAGES[:0]).shape == (0,)


def test_saved_and_loaded(network: nn.Module, fitted: FROQ, tmp_path: Path) -> None:
    path = tmp_path / "froq.json"
    fitted.save(path)
    loaded = FROQ.load(path, calibrated("residual"), PRESET)
    assert loaded.selection == fitted.selection
    assert torch.equal(loaded.score(IMAGES), fitted.score(IMAGES))
    assert [file.name for file in tmp_path.iterdir()] == ["froq.json"]
    with pytest.raises(ValueError, match="got one of other weights"):
        FROQ.load(path, calibrated("residual", seed=1), PRESET)
    with pytest.raises(ValueError, match="expected the preset"):
        FROQ.load(path, network, Preset("odd", (36, 44), "rgb", PRESET.mean, PRESET.std))
    with pytest.raises(FileNotFoundError):
        FROQ.load(tmp_path / "none.json", network, PRESET)
    with pytest.raises(FileAccessError, match="cannot write"):
        fitted.save(tmp_path / "none" / "froq.json")


def _selected(**change: Any) -> Callable[[dict[str, Any]], object]:
    return lambda saved: {**saved, "selection": {**saved["selection"], **change}}


BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "list": (lambda s: [s], "an object with version"),
    "a field more": (lambda s: {**s, "extra": 1}, "got .*extra"),
    "version": (lambda s: {**s, "version": True}, "expected version 1, got True"),
    "hash": (lambda s: {**s, "model_sha256": "0" * 63}, "model_sha256 is"),
    "no preset": (lambda s: {**s, "preset": None}, "preset or selection is missing"),
    "preset": (lambda s: {**s, "preset": {**s["preset"], "std": [0, 1, 1]}}, "expected std above 0"),
    "selection": (lambda s: {**s, "selection": [1]}, "selection with modules"),
    "no modules": (_selected(modules=[]), "1 to 10 different modules, got 0"),
    "many modules": (_selected(modules=[str(i) for i in range(11)]), "1 to 10 different modules, got 11"),
    "twice": (_selected(modules=["stem", "stem"]), "different modules"),
    "text": (_selected(modules="stem"), "modules are 'stem'"),
    "numbers": (_selected(modules=[1]), "modules are"),
    "lists": (_selected(modules=[["a"]]), "modules are"),
    "the network": (_selected(modules=[""]), "modules are"),
    "correlation": (_selected(correlation=2), "correlation is 2"),
    "nan": (_selected(correlation=float("nan")), "got NaN"),
    "images": (_selected(images=3), "images is 3"),
    "seed": (_selected(seed="x"), "seed is 'x'"),
    "unknown": (_selected(modules=["stem.9"]), "one without 'stem.9'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files(what: str, network: nn.Module, fitted: FROQ, tmp_path: Path) -> None:
    change, message = BAD[what]
    path = tmp_path / "froq.json"
    fitted.save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message) as error:
        FROQ.load(path, network, PRESET)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b" " * (1 << 21), b'{"version":1,"version":1}']
)
def test_files_of_something_else(data: bytes, network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "froq.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="expected a saved FROQ in"):
        FROQ.load(path, network, PRESET)


def test_refusals(network: nn.Module, fitted: FROQ, tmp_path: Path) -> None:
    fresh = FROQ(tiny(), PRESET)
    for use in (lambda: fresh.score(IMAGES), lambda: fresh.save(tmp_path / "froq.json")):
        with pytest.raises(NotFittedError, match=r"call fit\(\) first"):
            use()
    with pytest.raises(ValueError, match="20 or more calibration images, got 19"):
        fresh.fit(IMAGES[:19])
    with pytest.raises(TypeError, match="expected uint8 images"):
        fresh.fit(IMAGES / 255)
    with pytest.raises(ValueError, match="expected images"):
        fresh.fit(IMAGES[:, :, 1:])
    with pytest.raises(ValueError, match="expected images"):
        fitted.score(IMAGES[:, :, 1:])
    with pytest.raises(ValueError, match="all equal"):
        fresh.fit(IMAGES[:1].repeat(20, 1, 1, 1))
    with pytest.raises(ValueError, match="20 or more images and a chunk of 1 or more, got 19 and 8"):
        FROQ(network, PRESET, fit_images=19)


def test_images_without_a_direction() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 34 * 42, 8, False))
    with torch.no_grad():
        network[0].weight.copy_(network[0].weight.abs())  # dark images give zero
    images = IMAGES.clone()
    images[5] = 0
    with pytest.raises(ValueError, match=r"got none for row 5, plain or perturbed"):
        compute_pseudo_labels(images, network.eval(), PRESET)


def test_on_sface(sface: nn.Module, crops: Tensor) -> None:
    """A blurred face turns more; norms of layers under their names in the ONNX file."""
    preset = Preset.resolve("sface")
    blurred = nn.functional.avg_pool2d(crops[:1].float(), 13, 1, 6, count_include_pad=False).to(torch.uint8)
    sharp, soft = compute_pseudo_labels(torch.cat([crops[:1], blurred]), sface, preset)
    assert sharp > soft + 0.003
    method = FROQ(sface, preset)
    method.selection = LayerSelection(("conv_14_batchnorm", "dropout5", "fc1"), 0.5, 200, 0)
    with torch.no_grad():
        last = torch.linalg.vector_norm(sface(crops[:12].float()), dim=1)
    scores = method.score(crops[:12])
    names, norms = method._measure_candidates(crops[:12])
    assert len(names) == 86  # all that the graph calls
    np.testing.assert_allclose(norms[:, names.index("fc1")], last.numpy(), rtol=1e-5)
    expected = norms[:, [names.index(name) for name in method.selection.modules]].mean(1)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5)
    alone = torch.cat([method.score(crops[index : index + 1]) for index in range(3)])
    torch.testing.assert_close(scores[:3], alone, rtol=1e-5, atol=0)
