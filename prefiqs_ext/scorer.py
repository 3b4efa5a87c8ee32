"""Images in, qualities and embeddings out: :class:`Scorer` for any network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from prefiqs_ext.device import resolve_device
from prefiqs_ext.dual import (
    check_half,
    compare_branches,
    convert_to_half,
    dualize,
    find_recalibration,
    is_out_of_memory,
    list_layers,
    make_comparison,
    make_images,
)
from prefiqs_ext.exceptions import InputError, InputTypeError, OutOfMemoryError
from prefiqs_ext.inputs import (
    Colour,
    ImageInput,
    check_values,
    make_batch,
    make_example_images,
    make_recalibration_inputs,
    name_rows,
    scale_to_levels,
)
from prefiqs_ext.models.fingerprint import hash_weights
from prefiqs_ext.models.loading import resolve_network
from prefiqs_ext.models.normalize import NormalizedNetwork
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.models.template import CropTemplate
from prefiqs_ext.output import ScoreOutput
from prefiqs_ext.pruning import Pruning, check_pruning
from prefiqs_ext.ranking import Ranking, check_ranking, choose_ranking, compute_score
from prefiqs_ext.recalibration import Recalibration
from prefiqs_ext.settings import Settings
from prefiqs_ext.utils.check_arguments import check_count
from prefiqs_ext.utils.text import name_dtype
from prefiqs_ext.utils.torch_defaults import torch_defaults, without_autocast

# Images run together: what stays in a CPU's cache; what fills a GPU.
_CHUNK = {"cpu": 16, "cuda": 256}
_TRIALS = 5  # images on which half precision is tried; the median's D varies by a tenth between images


class Scorer(nn.Module):
    """A recognition network and its pruned copy, run together on one set of weights.

    >>> scorer = prefiqs_ext.Scorer("sface")
    >>> out = scorer(crops)  # RGB, uint8 [40, 3, 112, 112]
    >>> out.score.shape  # HIGHER is better
    torch.Size([40])
    >>> settings = scorer.settings  # what the numbers depend on; settings.save(path) keeps it

    Call it with images, as :meth:`forward` describes; it returns a :class:`ScoreOutput`. A row's numbers have the same
    bits whether the image comes alone or anywhere in a batch of any size, with any number of threads.

    A Scorer is a `torch.nn.Module` for inference. It can be pickled, compiled, exported, used from several threads and
    put into another module. It stays on the device and in the dtype it was made with. Your network is never changed,
    and it is not kept.

    Args:
        model: the name of a built-in network ("sface"; its weights are fetched at first use), a file for
            :func:`prefiqs_ext.models.load`, or a module in eval mode that maps a batch to embeddings ``[N, d]``.
        pruning: what the pruned copy loses; or masks of your own: a dictionary from a layer's name to a bool tensor of
            its weight's shape, True = keep.
        recalibrate: faces, as :meth:`forward` takes images, or the :class:`Recalibration` of another Scorer of this
            network and pruning. Each channel of the pruned copy is then scaled and shifted to the mean and the spread
            that it has in the network itself over these faces, so that D no longer measures what pruning does to all
            faces alike. From 8 different clean faces on; of more than 128, as many are drawn evenly. None: D is the
            paper's.
        layers: the names of layers whose outputs' norms are wanted, of those that :meth:`list_layers` gives. An output
            is taken with everything that is folded into the layer, such as its activation.
        preset: the input that the network was trained on: a :class:`Preset` or its name ("arcface", "magface", ...).
            If None, a built-in network uses its own preset. The preset of a checkpoint is guessed from its layout, with
            a warning. A module or an ONNX file without a preset gets your tensor exactly as it is.
        device: "cpu", "cuda", or a device of these. None: the GPU that the model is on, else the CPU. Tensors must
            come from this device, and results are there.
        dtype: what to compute in. On the CPU it is float32, or bfloat16, which takes half the memory for weights and
            values. On CUDA it is float16, or bfloat16 for a network whose activations overflow float16 (the error says
            so). In both, sums and the embedding are float32.
        example: a batch like those to come, ``[N, ...]``. It is needed where no preset tells the shape.
        output: which of a network's several outputs is the embedding, by index or key. None: the first floating one of
            shape ``[N, d]`` with two columns or more.
        chunk: how many images run together. It bounds memory and never changes a result. None: 16 on the CPU, 256 on
            CUDA.
        fold: whether batch norm, input normalisation, activations and residuals are folded into the convolutions.
        on_bad: what to do with an image whose embedding has no direction (its norm is 0 or not finite): "raise", or
            "nan" for NaN as its score, distance and quality.
        rank_by: which number is the score: "quality", "norm" (of the embedding) or "calibrated", which needs settings
            with a calibration. None: the calibrated score where there is one; else what was measured to rank best with
            a known network; else the quality.

    Attributes:
        device: where it computes.
        dtype: what it computes in.
        preset: the input of the network, or None.
        layers: the names of the layers whose norms it gives.
        recalibration: the gains and shifts of the pruned layers, by their names in your network, or None.
        chunk: how many images run together.
        on_bad: as above.
        rank_by: which number is the score; never None.

    Raises:
        InputError: an argument that is not what was expected; CUDA that cannot be used; a pruning whose D is so small
            that in this dtype it would be rounding.
        MissingFileError, FileFormatError, MissingWeightsError: a model that cannot be loaded.
        UnsupportedNetworkError: a network that cannot be run as a pair.
        RuntimeError: the converted network does not give what the network gives, which is a fault of this package.
    """

    @torch_defaults()
    def __init__(
        self,
        model: str | PathLike[str] | nn.Module = "sface",
        pruning: Pruning | Mapping[str, Tensor] = Pruning(),  # noqa: B008, frozen
        *,
        recalibrate: ImageInput | Recalibration | None = None,
        layers: Sequence[str] = (),
        preset: Preset | str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        example: Tensor | None = None,
        output: int | str | None = None,
        chunk: int | None = None,
        fold: bool = True,
        on_bad: Literal["raise", "nan"] = "raise",
        rank_by: Ranking | None = None,
    ) -> None:
        super().__init__()
        check_pruning(pruning)
        check_ranking(rank_by, calibrated=False)
        if chunk is not None:
            check_count(chunk, "chunk")
        if example is not None and not isinstance(example, Tensor):
            raise InputTypeError(f"expected a tensor as example, got {type(example).__name__}")
        if on_bad not in ("raise", "nan"):
            raise InputError(f"expected on_bad 'raise' or 'nan', got {on_bad!r}")
        self.device, self.dtype = resolve_device(device, dtype, model)
        network, self.preset = resolve_network(model, preset)
        weights_hash = hash_weights(network)
        self.rank_by = choose_ranking(rank_by, weights_hash)
        if isinstance(pruning, Pruning):
            masks = pruning.make_masks(network)
        else:
            masks = {name: mask.cpu() for name, mask in pruning.items()}
        if self.preset is not None:
            example = make_example_images(self.preset)
        if example is None:
            raise InputError("expected a preset, or an example batch that shows the network's input; got neither")
        example = example.cpu()
        if recalibrate is not None and not isinstance(recalibrate, Recalibration):
            inputs = make_recalibration_inputs(recalibrate, self.preset, device=self.device, rank=example.dim())
            recalibrate = find_recalibration(network, masks, inputs, output=output)
        self.recalibration = recalibrate
        self._settings = None
        if isinstance(pruning, Pruning):
            name = None if isinstance(model, nn.Module) else str(model)
            where = self.device.type, name_dtype(self.dtype)
            self._settings = Settings(
                name, weights_hash, self.preset, pruning, *where, output, recalibration=recalibrate, rank_by=rank_by
            )
        self.layers = tuple(layers)
        self._prefix = "" if self.preset is None else "network."
        if self.preset is not None:
            # Masks and constants come first: they know layers by the names they have in the caller's model.
            network = NormalizedNetwork(self.preset, network)
            masks = {f"{self._prefix}{name}": mask for name, mask in masks.items()}
            recalibrate = None if recalibrate is None else recalibrate.with_prefix(self._prefix)
        self.chunk = chunk or _CHUNK[self.device.type]
        self.on_bad = on_bad
        self._input_rank = example.dim()
        self._dual = dualize(
            network,
            masks,
            example=example,
            output=output,
            recalibration=recalibrate,
            norms=[f"{self._prefix}{name}" for name in layers],
            fold=fold,
        )
        trial = make_images(example, 1 if self.dtype == torch.float32 else _TRIALS)
        with torch.inference_mode():
            expected = self._dual(trial)
        self._embedding_size = (expected[0] if layers else expected).shape[1]
        if self.dtype != torch.float32:
            convert_to_half(self._dual, self.device, self.dtype)
            check_half(self._dual, trial, expected, self.device, self.dtype)
        self._run = make_comparison(self._dual, example, self.device, self.chunk)

    @classmethod
    def from_settings(
        cls,
        settings: Settings | str | PathLike[str],
        model: str | PathLike[str] | nn.Module | None = None,
        **options: Any,
    ) -> Scorer:
        """Makes the scorer that gave these settings, or one like it.

        ``Scorer.from_settings("settings.json")`` is the scorer whose ``settings.save("settings.json")`` wrote the file.

        Args:
            settings: :class:`Settings`, or a file of them. The scorer's own `settings` keep their calibration.
            model: the model. None: the one that the settings name.
            **options: `device`, `dtype` and `rank_by`, where None stands for those of the settings; `example`, `chunk`,
                `fold` and `on_bad`, as the constructor takes them.

        Raises:
            InputError: a model with other weights than the settings were made with; settings that name no model; a
                device or dtype other than the one that their scale was fitted in; `rank_by="calibrated"` without a
                scale.
        """
        if not isinstance(settings, Settings):
            settings = Settings.load(settings)
        device = options.pop("device", None) or settings.device
        dtype = options.pop("dtype", None)
        if dtype is None and torch.device(device).type == settings.device:
            dtype = getattr(torch, settings.dtype)
        place, dtype = resolve_device(device, dtype, None)
        rank_by = options.pop("rank_by", None) or settings.rank_by
        settings = replace(settings.with_device(place, dtype), rank_by=rank_by)
        ranking = choose_ranking(rank_by, settings.model_sha256, calibrated=settings.calibration is not None)
        source = settings.model if model is None else model
        if source is None:
            raise InputError("expected the model that these settings were made with: they name none, it was a module")
        if settings.calibration is not None and not options.get("fold", True):
            raise InputError("expected fold=True with a calibration, which reads what folded layers give; got False")
        scorer = cls(
            source,
            settings.pruning,
            recalibrate=settings.recalibration,
            layers=() if settings.calibration is None else settings.calibration.layers,
            preset=settings.preset,
            output=settings.output,
            device=place,
            dtype=dtype,
            **options,
        )
        found = scorer.settings.model_sha256
        if found != settings.model_sha256:
            raise InputError(
                f"expected the model that these settings were made with, whose weights have SHA-256 "
                f"{settings.model_sha256[:12]}..., got {found[:12]}..."
            )
        scorer._settings, scorer.rank_by = settings, ranking
        return scorer

    @property
    def settings(self) -> Settings:
        """What the numbers depend on: save it, and make the same scorer again with :meth:`from_settings`.

        Raises:
            InputError: the scorer was made with masks of your own, which are not kept.
        """
        if self._settings is None:
            raise InputError("masks of your own are not kept in settings: construct the Scorer with a Pruning")
        return self._settings

    def list_layers(self) -> tuple[str, ...]:
        """Returns the names of the network's convolutions and linear layers, in the order in which they run."""
        return tuple(name.removeprefix(self._prefix) for name in list_layers(self._dual))

    @property
    def resident_bytes(self) -> int:
        """Bytes of all tensors that the scorer keeps: weights, masks, biases."""
        return sum(t.numel() * t.element_size() for t in (*self.parameters(), *self.buffers()))

    def forward(self, images: ImageInput, *, colour: Colour = "rgb") -> ScoreOutput:
        """Scores images; call the scorer itself, ``scorer(images)``.

        Inside `torch.compile` and `torch.export` it is one pass over all rows of a tensor, and nothing is checked.

        Args:
            images: with a preset, RGB images of exactly its size: a tensor ``[N, 3, H, W]`` or ``[3, H, W]``, uint8 of
                0-255 or floating of [0, 1], in any memory layout, on the scorer's device; a NumPy array uint8
                ``[N, H, W, 3]`` or ``[H, W, 3]``; a PIL image in mode RGB; the path of a crop; a list of single images
                of these kinds. Without a preset, the tensor that the network takes, float32 or uint8. A batch of
                N = 0 gives empty tensors.
            colour: "bgr" for tensors and arrays whose first channel is blue, as OpenCV reads images.

        Returns:
            :class:`ScoreOutput`, one row per image, on the scorer's device.

        Raises:
            InputTypeError, InputError: the images have another type, shape, size or device; the message says what to
                do. Also an embedding without a direction, unless the scorer was made with ``on_bad="nan"``.
            FileAccessError, FileFormatError: a path that gives no image.
            OutOfMemoryError: it names a chunk to try, where there is a smaller one.
        """
        if torch.compiler.is_compiling():
            assert isinstance(images, Tensor)
            rows = images.flip(1) if colour == "bgr" else images
            with without_autocast(self.device.type):
                return self._make_output(*compare_branches(self._dual, scale_to_levels(rows, self.preset)))
        batch = make_batch(images, self.preset, device=self.device, rank=self._input_rank, colour=colour)
        if not batch.shape[0]:
            none = torch.empty(0, dtype=torch.float32, device=self.device)
            no_embedding = none.new_empty(0, self._embedding_size)
            no_norms = none.new_empty(0, len(self.layers))
            return self._make_output(none, no_embedding, no_embedding.clone(), none.clone(), no_norms)
        on_device = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with on_device, without_autocast(self.device.type), torch.inference_mode():
            extremes = batch.aminmax() if batch.is_floating_point() else ()
            outputs = [self._score_rows(scale_to_levels(rows, self.preset)) for rows in torch.split(batch, self.chunk)]
        # Joined outside inference mode, so that the results are ordinary tensors.
        output = self._make_output(*(torch.cat(fields) for fields in zip(*outputs, strict=True)))
        bad = ~output.distance.isfinite() | ~output.embedding_norm.isfinite() | (output.embedding_norm == 0)
        # Read together: one wait for the device.
        any_bad, *extreme = torch.stack([bad.any(), *extremes]).tolist()
        if extreme:
            check_values(batch, self.preset, *extreme)
        return self._mark_bad(bad, output) if any_bad else output

    if TYPE_CHECKING:
        __call__ = forward  # torch says that modules return Any

    def _score_rows(self, rows: Tensor) -> tuple[Tensor, ...]:
        try:
            return self._run(rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if len(rows) == 1:
            raise OutOfMemoryError(
                f"{self.device} has too little memory for one image: free some of it, or use another device"
            )
        half = len(rows) // 2
        raise OutOfMemoryError(f"{self.device} has too little memory for {len(rows)} images together: try chunk={half}")

    def _make_output(
        self, distance: Tensor, embedding: Tensor, pruned_embedding: Tensor, norm: Tensor, layer_norms: Tensor
    ) -> ScoreOutput:
        calibration = None if self._settings is None else self._settings.calibration
        score = compute_score(self.rank_by, distance, norm, layer_norms, calibration)
        return ScoreOutput(score, distance, 1 - distance / 2, embedding, pruned_embedding, norm, layer_norms)

    def _mark_bad(self, bad: Tensor, output: ScoreOutput) -> ScoreOutput:
        """Raises for rows without a direction, or makes their numbers NaN."""
        if self.on_bad == "raise":
            overflow = "dtype=torch.bfloat16 if they overflow, or " if self.dtype == torch.float16 else ""
            raise InputError(
                f"expected embeddings of finite norm above 0, got none for {name_rows(bad)}; check these images and "
                f"the weights, or construct the Scorer with {overflow}on_bad='nan'"
            )
        unknown = ("score", "distance", "quality")
        return output._replace(**{name: getattr(output, name).masked_fill(bad, torch.nan) for name in unknown})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Scorer:
        """Refuses to(), cuda(), half() and the like, also a parent's, unless they change nothing."""
        moved = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if (moved.device, moved.dtype) != (self.device, self.dtype):
            raise InputError(
                f"a Scorer stays where it was made, on {self.device} in {self.dtype}: "
                "construct another with Scorer(model, device=..., dtype=...)"
            )
        return self


def get_template(scorer: Scorer) -> CropTemplate:
    """Gets what the crops are like that a scorer takes.

    Raises:
        InputTypeError: it is no Scorer.
        InputError: it has no preset.
    """
    if not isinstance(scorer, Scorer):
        remedy = f": Scorer({scorer!r})" if isinstance(scorer, str) else ""
        raise InputTypeError(f"expected a Scorer, got {type(scorer).__name__}{remedy}")
    if scorer.preset is None:
        raise InputError("expected a scorer with a preset, which says how large a crop is; got none")
    return scorer.preset.template
